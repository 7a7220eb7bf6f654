"""Whole models that were measured, line by line: a run goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archsearch.latency.cases import HEAD
from archsearch.latency.cases import PARTS
from archsearch.latency.provenance import backend_packages
from archsearch.latency.provenance import compiler
from archsearch.latency.provenance import git_commit
from archsearch.latency.provenance import measured_hardware
from archsearch.latency.provenance import method
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles import source_hashes
from archsearch.profiles import source_name
from archsearch.profiles.sources import package_change
from archsearch.space import ArchSpec

MEASURED_FILE = "measured.jsonl"
# what is being measured, as long as it is: left behind by a process that died
BEGUN_FILE = "begun.json"
DIED = "the process died while it measured this"

Row = dict[str, Any]


def origin(spec: ArchSpec, device: str) -> Row:
    """What every row of a model says about where it comes from."""
    import torch

    return {
        "name": spec.name,
        "notation": spec.notation,
        "id": spec.id,
        "hardware": measured_hardware(device).slug,
        "torch": str(torch.__version__),
        "method": method(device),
        "git_commit": git_commit(),
        "sources": sources_of(spec, {}),
        "packages": backend_packages(device),
    }


def sources_of(spec: ArchSpec, ran: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the sources behind a model's speed; `ran` names the backend of each operator."""
    # the head has a fused step too
    names = {HEAD, *(layer.operator for layer in spec.layers)}
    return source_hashes({*PARTS, *(source_name(name, ran.get(name, "")) for name in names)})


def read_rows(folder: Path, check: Callable[[Row], object] | None = None) -> list[Row]:
    """All rows that were ever measured into `folder`; raises ValueError for a damaged file, or
    where `check` (default: for a shape) does. A last line that was cut short is left out."""
    check = check or shape_of
    path = folder / MEASURED_FILE
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        return [row for row in rows if check(row) and row["id"] and row["error"] is not None]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to measure again") from None


def valid_rows(folder: Path, table: Table) -> list[Row]:
    """The latest row per model and shape that was measured on the table's device with the
    present sources and kernel packages; with a table that holds stale rows, with any."""
    latest: dict[tuple[str, Shape], Row] = {}
    for row in read_rows(folder):
        if row["hardware"] != table.meta.get("hardware", {}).get("slug"):
            continue
        if table.holds_stale or is_fresh(row, table.meta):
            key = row["id"], shape_of(row)
            # a failure does not undo a measurement
            if key not in latest or not row["error"] or latest[key]["error"]:
                latest[key] = row
    return list(latest.values())


def is_fresh(row: Row, meta: Mapping[str, Any]) -> bool:
    """Whether it was measured by the method and compiled by the Triton of this provenance, and
    the sources of its operators and the packages behind the backends that ran are what they
    were."""
    same = row.get("method") == meta.get("method") and compiler(row) == compiler(meta)
    same = same and source_hashes(row["sources"]) == row["sources"]
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
