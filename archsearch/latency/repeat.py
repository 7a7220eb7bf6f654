"""Measure rows of a table again: does another day give the same times?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from archsearch.files import write_text
from archsearch.latency.calibrate import check_same_device
from archsearch.latency.cases import Case
from archsearch.latency.ceilings import Ceilings
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.provenance import git_commit
from archsearch.latency.provenance import now
from archsearch.latency.sweep import BUDGET_S
from archsearch.latency.sweep import measure_case
from archsearch.profiles import Table
from archsearch.timing import CPU_PASSES

REPEAT_FILE = "repeat.json"
TOLERANCE = 0.03
SPREAD = ["operator", "phase", "batch"]


@dataclass(frozen=True, slots=True)
class RepeatedRow:
    """One row of the table, then and now."""

    case: Case
    backend: str
    table_us: float
    again_us: float

    @property
    def difference(self) -> float:
        """Relative: 0.01 where it took 1 % longer now."""
        return self.again_us / self.table_us - 1


@dataclass(frozen=True)
class Repeat:
    """A sample of rows measured again, with both dates."""

    seed: int
    table_measured: str
    measured: str
    git_commit: str | None
    rows: tuple[RepeatedRow, ...]
    failed: tuple[str, ...]
    tolerance: float = TOLERANCE

    @property
    def median(self) -> float:
        """Median relative difference: is everything slower or faster now?"""
        return float(np.median([row.difference for row in self.rows]))

    @property
    def median_size(self) -> float:
        """Median of the relative differences without their sign."""
        return float(np.median([abs(row.difference) for row in self.rows]))

    @property
    def within(self) -> int:
        """Rows that agree within the tolerance."""
        return sum(abs(row.difference) <= self.tolerance for row in self.rows)

    def by_phase(self) -> dict[str, list[RepeatedRow]]:
        """The rows of each phase."""
        found: dict[str, list[RepeatedRow]] = {}
        for row in self.rows:
            found.setdefault(row.case.phase, []).append(row)
        return found


def sample_rows(table: Table, count: int, seed: int) -> pd.DataFrame:
    """`count` measured rows of the table, the same for the same seed, in turn from every
    operator, phase and batch. Raises ValueError where it has fewer."""
    rows = table.rows[table.rows["error"] == ""]
    if not 0 < count <= len(rows):
        raise ValueError(
            f"the table {table.name!r} has {len(rows)} measured rows; got {count} to repeat"
        )
    rng = np.random.default_rng(seed)
    # the order of the rows in the file shall not matter
    shuffled = rows.sort_values(list(Case.__slots__)).iloc[rng.permutation(len(rows))]
    turns = shuffled.groupby(SPREAD).cumcount()
    # within a turn the groups come in the shuffled order
    return shuffled.iloc[np.argsort(turns.to_numpy(), kind="stable")[:count]]


def repeat_rows(table: Table, *, count: int, seed: int, device: str) -> Repeat:
    """Measure a sample of the table's rows again, in the way that they were measured.

    Raises ValueError where the table is another device's or nothing could be measured.
    """
    check_same_device(table, device)
    ceilings = measure_ceilings(device) if device.startswith("cuda") else None
    rows, failed = [], []
    for row in sample_rows(table, count, seed).to_dict("records"):
        case = Case(**{name: row[name] for name in Case.__slots__})
        again = _measure(case, device, ceilings)
        if again["error"]:
            failed.append(f"{case}: {again['error']}")
        elif again["backend"] != row["backend"]:
            failed.append(f"{case}: {row['backend']} then, {again['backend']} now")
        else:
            times = float(row["latency_us_p50"]), float(again["latency_us_p50"])
            rows.append(RepeatedRow(case, row["backend"], *times))
    if not rows:
        raise ValueError(f"none of {count} rows could be measured again; {failed[0]}")
    return Repeat(
        seed=seed,
        table_measured=str(table.meta.get("measured", "")),
        measured=now(),
        git_commit=git_commit(),
        rows=tuple(rows),
        failed=tuple(failed),
    )


def write_repeat(found: Repeat, folder: Path) -> None:
    """Add this repetition to those that `folder` keeps."""
    path = folder / REPEAT_FILE
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    entry: dict[str, Any] = {
        "measured": found.measured,
        "table_measured": found.table_measured,
        "git_commit": found.git_commit,
        "seed": found.seed,
        "median_difference": found.median,
        "median_absolute_difference": found.median_size,
        "tolerance": found.tolerance,
        "within_tolerance": found.within,
        "count": len(found.rows),
        "failed": list(found.failed),
        "rows": [_plain(row) for row in found.rows],
    }
    write_text(path, json.dumps([*earlier, entry], indent=1) + "\n")


def _plain(row: RepeatedRow) -> Mapping[str, Any]:
    times = {"table_us": row.table_us, "again_us": row.again_us, "difference": row.difference}
    return {**asdict(row.case), "backend": row.backend, **times}


def _measure(case: Case, device: str, ceilings: Ceilings | None) -> dict[str, Any]:
    """One row as a sweep measures it; on a CPU the quietest of several measurements."""
    if ceilings is not None:
        return measure_case(case, device=device, budget_s=BUDGET_S["cuda"], ceilings=ceilings)
    budget_s = BUDGET_S["cpu"] / CPU_PASSES
    rows = [measure_case(case, device=device, budget_s=budget_s) for _ in range(CPU_PASSES)]
    return min(rows, key=lambda row: row.get("latency_us_p50") or float("inf"))
