"""Tables that several machines of one kind measured become one."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from archsearch.profiles.schema import empty_rows
from archsearch.profiles.sources import source_name
from archsearch.profiles.store import Table
from archsearch.profiles.store import merge

# what keeps the rows of two provenances apart, as readable clauses
Differences = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]


def join(tables: Sequence[Table], differences: Differences) -> Table:
    """All rows of the tables with the provenance of the one measured last, and the sessions of
    all; a case that several have is taken from the one measured last.

    Raises ValueError for none at all, and for tables that `differences` tells apart or that
    measured other sources of an operator, naming both.
    """
    if not tables:
        raise ValueError("merging needs at least one table")
    ordered = sorted(tables, key=lambda table: str(table.meta.get("measured", "")))
    last, rows = ordered[-1], empty_rows()
    sources: dict[str, str] = {}
    sessions: list[dict[str, Any]] = []
    for old, new in combinations(ordered, 2):
        _check(old, new, differences)
    for table in ordered:
        sources |= _sources(table)
        moved, renumbered = _renumbered(table, sessions)
        sessions += moved
        rows = merge(rows, table.rows.assign(session=table.rows["session"].map(renumbered)))
    meta = {**last.meta, "sources": sources, "sessions": sessions}
    return Table(last.name, rows, meta)


def _check(old: Table, new: Table, differences: Differences) -> None:
    before, after = _sources(old), _sources(new)
    apart = differences(old.meta, new.meta)
    apart += [
        f"sources of {name}"
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]
    if apart:
        raise ValueError(
            f"{old.path or old.name} cannot be merged with {new.path or new.name}:"
            f" they differ in {', '.join(apart)}"
        )


def _sources(table: Table) -> dict[str, str]:
    """The hashes that the table's rows depend on: without a row by a fused step, none of it."""
    backends = table.rows[["operator", "backend"]].drop_duplicates()
    names = {source_name(*pair) for pair in backends.itertuples(index=False, name=None)}
    return {name: value for name, value in table.meta["sources"].items() if name in names}


def _renumbered(
    table: Table, known: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """The table's sessions under numbers that follow the `known` ones, and new number by old;
    a session that is known already (tables that grew from one another) keeps its entry."""
    entries = table.meta.get("sessions", [])
    entries = [*entries, *_unlisted(table, entries)]
    moved: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}
    for entry in entries:
        plain = _without_id(entry)
        same = next((old for old in [*known, *moved] if _without_id(old) == plain), None)
        if same is None:
            same = {**plain, "id": len(known) + len(moved)}
            moved.append(same)
        numbers[entry["id"]] = same["id"]
    return moved, numbers


def _unlisted(table: Table, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sessions that rows name and the provenance does not tell about."""
    listed = {entry["id"] for entry in entries}
    return [
        {"id": int(number), "measured": table.meta.get("measured", "")}
        for number in sorted(set(table.rows["session"]) - listed)
    ]


def _without_id(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "id"}
