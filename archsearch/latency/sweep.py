"""Measure cases into a table: resumable, with a failure as a row and nothing lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from archsearch import timing
from archsearch.latency.cases import Case
from archsearch.latency.provenance import differences
from archsearch.latency.provenance import measured_hardware
from archsearch.latency.provenance import provenance
from archsearch.latency.roofline import floor_us
from archsearch.latency.stack import prepare
from archsearch.profiles import Table
from archsearch.profiles import empty_rows
from archsearch.profiles import load_table
from archsearch.profiles import make_rows
from archsearch.profiles import merge
from archsearch.profiles import save_table
from archsearch.profiles import source_hashes
from archsearch.profiles.store import META_FILE
from archsearch.timing import CPU_PASSES

# done, total, remaining seconds
OnProgress = Callable[[int, int, float], None]

SAVE_EVERY_S = 3.0
BUDGET_S = 0.24
# cases of a group are measured in turn, so that the passes over one lie seconds apart
GROUP = 64
MIN_REPEATS = {"decode": 30, "prefill": 7, "train": 5}


def profile(
    cases: Iterable[Case],
    *,
    folder: Path,
    device: str = "cpu",
    budget_s: float = BUDGET_S,
    on_progress: OnProgress | None = None,
) -> Table:
    """Measure the `cases` that the table in `folder` does not have yet, and save it.

    Rows of an interrupted or earlier sweep are kept; those that failed or whose operator's
    sources have changed are measured again. A table of other hardware, torch or method that
    lies there is set aside under another name. Raises OSError where `folder` cannot be written.
    """
    cases = list(dict.fromkeys(cases))
    meta = provenance(device)
    old = _earlier_rows(folder, meta)
    meta["sources"] = source_hashes({*old["operator"], *(case.operator for case in cases)})
    known = set(old.loc[old["error"] == "", _CASE].itertuples(index=False, name=None))
    todo = [case for case in cases if tuple(asdict(case).values()) not in known]
    sweep = _Sweep(Table(folder.name, old, meta, folder), folder)
    begin = time.monotonic()
    passes = 1 if device.startswith("cuda") else CPU_PASSES
    calls = [(case, again) for group in _groups(todo) for again in range(passes) for case in group]
    try:
        # first of all: a folder that cannot be written is found before any work
        sweep.save()
        for done, (case, again) in enumerate(calls):
            if on_progress:
                left = (time.monotonic() - begin) / done * (len(calls) - done) if done else 0.0
                on_progress(len(cases) - len(todo) + done // passes, len(cases), left)
            row = measure_case(case, device=device, budget_s=budget_s / passes)
            sweep.add(case, row if not again else _quieter(sweep.row(case), row))
    finally:
        sweep.save()
    if on_progress:
        on_progress(len(cases), len(cases), 0.0)
    return sweep.table


def measure_case(case: Case, *, device: str = "cpu", budget_s: float = BUDGET_S) -> dict[str, Any]:
    """Measure one case; what goes wrong becomes the row's `error`."""
    row: dict[str, Any] = {
        **asdict(case),
        "backend": "",
        "repeats": 0,
        "stack": 0,
        "stack_bytes": 0,
        "used_cuda_graph": False,
        "error": "",
    }
    try:
        work = prepare(case, device)
        row |= {"backend": work.backend, "stack": work.distinct, "stack_bytes": work.num_bytes}
        row |= {"bytes": work.cost.bytes, "flops": work.cost.flops}
        floor = row["roofline_us"] = floor_us(work.cost, measured_hardware(device))
        with torch.inference_mode(case.phase != "train"):
            measured = timing.measure(
                work.call,
                device=device,
                warmup=work.distinct,
                min_repeats=MIN_REPEATS[case.phase],
                budget_s=budget_s,
                before=work.before,
            ).per(work.count)
        if floor is not None and measured.p50_us < floor:
            raise RuntimeError(
                f"measured {measured.p50_us:.3g} us, below the floor of {floor:.3g} us"
            )
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else ""
        return row | {"error": f"{type(error).__name__}: {message}"}
    return row | {
        "latency_us_p10": measured.p10_us,
        "latency_us_p50": measured.p50_us,
        "latency_us_p90": measured.p90_us,
        "repeats": measured.repeats,
        "used_cuda_graph": measured.used_cuda_graph,
    }


_CASE = ["operator", "config", "hidden_size", "phase", "batch", "context", "dtype"]


class _Sweep:
    """The table as it grows, written every few seconds."""

    def __init__(self, table: Table, folder: Path) -> None:
        self.table, self.folder = table, folder
        self._new: dict[Case, dict[str, Any]] = {}
        self._latest: dict[Case, dict[str, Any]] = {}
        self._saved_at = time.monotonic()

    def row(self, case: Case) -> dict[str, Any]:
        return self._latest[case]

    def add(self, case: Case, row: dict[str, Any]) -> None:
        self._new[case] = self._latest[case] = row
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        rows = merge(self.table.rows, make_rows(list(self._new.values())))
        table = Table(self.table.name, rows, self.table.meta, self.folder)
        self.table = save_table(table, self.folder)
        self._new.clear()
        self._saved_at = time.monotonic()


def _groups(cases: list[Case]) -> list[list[Case]]:
    return [cases[begin : begin + GROUP] for begin in range(0, len(cases), GROUP)]


def _quieter(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The measurement with the lower median; one that failed only if both did."""
    if first["error"] or second["error"]:
        return first if second["error"] else second
    return min(first, second, key=lambda row: row["latency_us_p50"])


def _earlier_rows(folder: Path, meta: dict[str, Any]) -> pd.DataFrame:
    """Rows in `folder` that still hold; a table they cannot be mixed with is moved aside."""
    if not (folder / META_FILE).exists():
        return empty_rows()
    table = load_table(folder, allow_stale=True)
    if differences(dict(table.meta), meta):
        stamp = str(table.meta.get("measured", "")).replace(":", "")[:17]
        os.rename(folder, folder.with_name(f"{folder.name}-until-{stamp or os.getpid()}"))
        return empty_rows()
    return table.rows[~table.rows["operator"].isin(list(table.stale))].reset_index(drop=True)
