"""Why models could not be compared with a table, in as few sentences as there are reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from archsearch.latency.plan import GRIDS
from archsearch.operators import Shape
from archsearch.profiles import Table

SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Missing:
    """A whole model that was not compared at a shape, and why."""

    name: str
    shape: Shape
    reason: str


def reasons(missing: Iterable[Missing], table: Table) -> list[str]:
    """A sentence for each phase that `table` has no row of, then one for each other reason."""
    measured = set(table.rows["phase"])
    by_phase: dict[str, list[Shape]] = {}
    by_reason: dict[str, list[str]] = {}
    for one in missing:
        if one.shape.phase in measured:
            by_reason.setdefault(one.reason, []).append(one.name)
        else:
            by_phase.setdefault(one.shape.phase, []).append(one.shape)
    phases = [
        f"the table {table.label!r} has no rows of phase {phase}: measure them with:"
        f" {_command(phase, shapes, table)}"
        for phase, shapes in by_phase.items()
    ]
    others = [f"{_models(names)}: {reason}" for reason, names in by_reason.items()]
    return [*phases, *others]


def _command(phase: str, shapes: list[Shape], table: Table) -> str:
    """The plan of shipped tables where it covers what was asked, else the shapes themselves."""
    on_gpu = table.meta.get("hardware", {}).get("kind") == "gpu"
    device = " --device cuda" if on_gpu else ""
    if on_gpu and set(shapes) <= set(GRIDS[SHIPPED].shapes()):
        return f"archsearch profile --grid {SHIPPED} --phase {phase}{device}"
    batches, contexts = (
        ",".join(map(str, sorted(sizes)))
        for sizes in ({s.batch for s in shapes}, {s.context for s in shapes})
    )
    return (
        f"archsearch profile SPEC... --phase {phase} --batch {batches} --context {contexts}"
        f" --dtype {shapes[0].dtype}{device}"
    )


def _models(names: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    first, *others = dict.fromkeys(names)
    if not others:
        return first
    return f"{first} and {len(others)} other model{'s' if len(others) > 1 else ''}"
