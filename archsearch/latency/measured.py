"""Whole models that were measured, line by line: a run goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archsearch.latency.provenance import METHOD
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import source_hashes
from archsearch.profiles.sources import package_change

MEASURED_FILE = "measured.jsonl"
# what is being measured, as long as it is: left behind by a process that died
BEGUN_FILE = "begun.json"
DIED = "the process died while it measured this"

Row = dict[str, Any]


def read_rows(folder: Path) -> list[Row]:
    """All rows that were ever measured into `folder`; raises ValueError for a damaged file. A
    last line that an interruption cut short is left out."""
    path = folder / MEASURED_FILE
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        return [row for row in rows if shape_of(row) and row["id"] and row["error"] is not None]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to measure again") from None


def valid_rows(folder: Path, table: Table) -> list[Row]:
    """The latest row per model and shape that was measured on the table's device with the
    present sources and kernel packages; with a table that holds stale rows, with any."""
    latest: dict[tuple[str, Shape], Row] = {}
    for row in read_rows(folder):
        if row["hardware"] != table.meta.get("hardware", {}).get("slug"):
            continue
        if table.holds_stale or is_fresh(row):
            key = row["id"], shape_of(row)
            # a failure does not undo a measurement
            if key not in latest or not row["error"] or latest[key]["error"]:
                latest[key] = row
    return list(latest.values())


def is_fresh(row: Row) -> bool:
    """Whether the method, the sources of its operators, and the packages behind the backends
    that ran are what they were."""
    same = source_hashes(row["sources"]) == row["sources"] and row.get("method") == METHOD
    return same and not any(
        package_change(backend, row["packages"]) for backend in row.get("backends", {}).values()
    )


def shape_of(row: Mapping[str, Any]) -> Shape:
    """The shape that a row was measured at."""
    return Shape(row["phase"], row["batch"], row["context"], row["dtype"])


def begin_row(folder: Path, row: Row) -> None:
    """Note what is about to be measured; `append_row` or `forget_begun` ends it."""
    (folder / BEGUN_FILE).write_text(json.dumps(row), encoding="utf-8")


def forget_begun(folder: Path) -> None:
    """It was interrupted, and nothing is wrong with it."""
    (folder / BEGUN_FILE).unlink(missing_ok=True)


def recover_begun(folder: Path) -> None:
    """What an earlier process died on becomes a row that says so."""
    path = folder / BEGUN_FILE
    if path.exists():
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            # it died even before it had noted it
            forget_begun(folder)
        else:
            append_row(folder, row | {"error": DIED})


def append_row(folder: Path, row: Row) -> None:
    """Add a row to those of `folder`, at once; a line that was cut short makes room."""
    path = folder / MEASURED_FILE
    text = path.read_bytes() if path.exists() else b""
    with path.open("r+b" if text else "wb") as file:
        file.truncate(text.rfind(b"\n") + 1)
        file.seek(0, 2)
        file.write(json.dumps(row, sort_keys=True).encode() + b"\n")
    forget_begun(folder)
