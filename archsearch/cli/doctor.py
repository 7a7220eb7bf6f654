"""`archsearch doctor`: what this machine has, and what serves each operator."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Any

import typer

from archsearch.cli import terminal

if TYPE_CHECKING:
    from archsearch.doctor import Findings
    from archsearch.doctor import Service
    from archsearch.hardware import Hardware


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has, which backend serves each operator, and why not another."""
    from archsearch.doctor import examine

    found = examine()
    if as_json:
        terminal.print_json(_plain(found))
        return
    console = terminal.console()
    console.print(_machine(found))
    console.print()
    console.print(_tables(found))
    console.print()
    console.print(f"Backends on {found.device} in {found.dtype}", style="bold")
    console.print(_matrix(found.services))
    reasons = list(_reasons(found.services))
    if reasons:
        console.print("\nPreferred, but", style="bold")
        console.print(_listed(reasons))
    advice = list(_advice(found))
    if advice:
        console.print("\nTo install", style="bold")
    for line in advice:
        console.print(line, markup=False)


def _plain(found: Findings) -> dict[str, Any]:
    plain = asdict(found)
    for table in plain["tables"]:
        info = table.pop("info")
        table |= {"name": info["name"], "origin": info["origin"], "path": str(info["path"])}
    return plain | {"install": list(_advice(found))}


def _machine(found: Findings) -> Any:
    facts = terminal.facts()
    terminal.let_wrap(facts.columns[1])
    facts.add_row("GPU", _gpu(found))
    cpu, software = found.cpu, found.software
    facts.add_row("CPU", f"{cpu.name}, {cpu.cores} cores, {terminal.size(cpu.memory_bytes)}")
    named = [f"{name} {text or 'none'}" for name, text in software.items()]
    facts.add_row("software", ", ".join(named))
    packages = [f"{name} {text or 'missing'}" for name, text in found.packages.items()]
    facts.add_row("kernels", ", ".join(packages))
    return facts


def _gpu(found: Findings) -> str:
    if found.gpu is None:
        return "none that torch sees"
    gpu: Hardware = found.gpu
    parts = [gpu.name, terminal.size(gpu.memory_bytes), f"compute capability {found.capability}"]
    parts += [f"driver {found.driver}"] if found.driver else []
    known = "known peaks" if gpu.peaks else "no known peaks: rooflines are left out"
    return ", ".join([*parts, known])


def _tables(found: Findings) -> Any:
    table = terminal.plain_table("latency table", "origin", "rows", "measured", "", left=2)
    terminal.let_wrap(table.columns[-1])
    for state in found.tables:
        # the folder is named in the first column
        problem = state.problem.replace(f"{state.info.path}/", "")
        notes = [problem] if problem else []
        notes += ["of this machine" if state.fits else "of another machine"][: not notes]
        notes += [f"stale: {', '.join(state.stale)}"] if state.stale else []
        row = (state.info.name, state.info.origin, str(state.rows or ""), state.measured)
        table.add_row(*row, "; ".join(notes))
    if not any(state.fits for state in found.tables):
        table.add_row("none of this machine", "", "", "", "'archsearch profile' measures one")
    return table


def _matrix(services: Sequence[Service]) -> Any:
    phases = list(dict.fromkeys(service.phase for service in services))
    table = terminal.plain_table("operator", *phases, left=1 + len(phases))
    rows: dict[str, list[str]] = {}
    for service in services:
        rows.setdefault(service.operator, []).append(service.backend or "nothing")
    for operator, backends in rows.items():
        table.add_row(operator, *backends)
    return table


def _reasons(services: Sequence[Service]) -> Iterator[tuple[str, str, str]]:
    """Backend, reason and where it holds; each reason once."""
    phases = {service.phase for service in services}
    places: dict[tuple[str, str], dict[str, list[str]]] = {}
    for service in services:
        for backend, reason in service.refused.items():
            place = places.setdefault((backend, reason), {})
            place.setdefault(service.operator, []).append(service.phase)
    for (backend, reason), where in places.items():
        names = [
            name if len(held) == len(phases) else f"{name} ({', '.join(held)})"
            for name, held in where.items()
        ]
        yield backend, reason, ", ".join(names)


def _listed(reasons: Sequence[tuple[str, str, str]]) -> Any:
    table = terminal.plain_table("backend", "cannot serve, since", "for", left=3)
    for column in table.columns[1:]:
        terminal.let_wrap(column)
    for row in reasons:
        table.add_row(*row)
    return table


def _advice(found: Findings) -> Iterator[str]:
    """What to type, and what to expect of it."""
    from archsearch.doctor import BUILD
    from archsearch.doctor import COMPILED

    if not found.missing:
        return
    if found.gpu is None:
        yield "Nothing here: the kernel packages need a CUDA GPU. On a machine with one:"
    compiled = [name for name in found.missing if name in COMPILED]
    plain = [name for name in found.missing if name not in COMPILED]
    tools = f"  pip install {' '.join(BUILD)}"
    if len(found.missing) == len(found.packages):
        yield tools
        yield "  pip install --no-build-isolation 'archsearch[cuda]'"
    else:
        if plain:
            yield f"  pip install {' '.join(plain)}"
        if compiled:
            yield tools
            yield f"  pip install --no-build-isolation {' '.join(compiled)}"
    if compiled:
        yield (
            f"{', '.join(compiled)} are compiled where no wheel fits: that takes minutes, torch"
            " installed before, and a CUDA toolkit (nvcc) of its CUDA version."
        )
