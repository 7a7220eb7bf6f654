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

from archsearch.operators import Phase
from archsearch.operators import Shape
from archsearch.profiles import Table

CALIBRATION_FILE = "calibration.json"
FORMAT = 1


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
    if table.path is None:
        return None
    wanted = group_key(shape.phase, shape.batch)
    for group in read_calibration(table.path):
        if group_key(group.phase, group.batches[0]) == wanted:
            return group.error
    return None


def read_calibration(folder: Path) -> tuple[Group, ...]:
    """The groups of the table in `folder`; none where it was never calibrated. Raises
    ValueError for a damaged file."""
    path = folder / CALIBRATION_FILE
    try:
        changed = path.stat().st_mtime_ns
    except FileNotFoundError:
        return ()
    return _read(path, changed)


def write_calibration(
    folder: Path, groups: Sequence[Group], provenance: Mapping[str, Any]
) -> None:
    """Write the groups beside the table in `folder`; `provenance` says when and with what."""
    content = {"format": FORMAT, **provenance, "groups": [asdict(group) for group in groups]}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / CALIBRATION_FILE).write_text(text, encoding="utf-8")


# predictions come by the thousands: the file is read again only when it has changed
@lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> tuple[Group, ...]:
    del changed
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return tuple(_group(fields) for fields in content["groups"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no calibration of a latency table ({error})") from None


def _group(fields: Mapping[str, Any]) -> Group:
    return Group(
        phase=fields["phase"],
        batches=tuple(fields["batches"]),
        contexts=tuple(fields["contexts"]),
        error=CalibrationError(**fields["error"]),
    )
