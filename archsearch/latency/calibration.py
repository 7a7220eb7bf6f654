"""How far a table's predictions were from whole models: `calibration.json` beside its rows.

`archsearch calibrate` writes it, predictions read their uncertainty from it. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from archsearch.files import write_text
from archsearch.operators import Phase
from archsearch.operators import Shape
from archsearch.profiles import Table

CALIBRATION_FILE = "calibration.json"
FORMAT = 2


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """Relative errors |predicted / measured - 1| over `count` whole models and shapes."""

    median: float
    p90: float
    count: int


@dataclass(frozen=True, slots=True)
class Group:
    """The error of the shapes that are alike: one phase; in decode batch 1 or larger ones."""

    phase: Phase
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    error: CalibrationError

    @property
    def label(self) -> str:
        """For people: "decode, batch 8-128"."""
        return group_label(self.phase, self.batches)


def group_label(phase: Phase, batches: Sequence[int]) -> str:
    """A group in words; outside decode the batch does not matter."""
    if phase != "decode":
        return phase
    span = str(batches[0]) if len(batches) == 1 else f"{min(batches)}-{max(batches)}"
    return f"{phase}, batch {span}"


def group_key(phase: Phase, batch: int) -> tuple[Phase, bool]:
    """What makes shapes alike: weights bound a decode of one row, states one of many."""
    return phase, phase == "decode" and batch > 1


def calibration_error(table: Table, shape: Shape) -> CalibrationError | None:
    """How far predictions from `table` at shapes like `shape` were from whole models; None where
    nobody compared. Raises ValueError for a damaged file."""
    wanted = group_key(shape.phase, shape.batch)
    for group in read_calibration(table):
        if group_key(group.phase, group.batches[0]) == wanted:
            return group.error
    return None


def read_calibration(table: Table) -> tuple[Group, ...]:
    """The groups of a table; none where it, in the folder that it lies in, was never calibrated.
    Raises ValueError for a damaged file."""
    if table.path is None:
        return ()
    path = table.path / CALIBRATION_FILE
    try:
        changed = path.stat().st_mtime_ns
    except FileNotFoundError:
        return ()
    begun, groups = _read(path, changed)
    return groups if begun == table_begun(table) else ()


def write_calibration(
    table: Table, groups: Sequence[Group], provenance: Mapping[str, Any]
) -> None:
    """Write the groups beside the table's rows; `provenance` says when and with what. Raises
    OSError where the folder cannot be written."""
    assert table.path is not None, "a table that lies nowhere has no place for its calibration"
    content = {
        "format": FORMAT,
        "table_begun": table_begun(table),
        **provenance,
        "groups": [asdict(group) for group in groups],
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_text(table.path / CALIBRATION_FILE, text)


def table_begun(table: Table) -> str:
    """When the measurement of a table began: it stays as rows are added, and another table that
    takes the folder has its own."""
    return min((entry.get("measured", "") for entry in table.meta.get("sessions", [])), default="")


# predictions come by the thousands: the file is read again only when it has changed
@lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> tuple[str, tuple[Group, ...]]:
    del changed
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        groups = tuple(_group(fields) for fields in content["groups"])
        return str(content["table_begun"]), groups
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no calibration of a latency table ({error})") from None


def _group(fields: Mapping[str, Any]) -> Group:
    return Group(
        phase=fields["phase"],
        batches=tuple(fields["batches"]),
        contexts=tuple(fields["contexts"]),
        error=CalibrationError(**fields["error"]),
    )
