"""Measure cases into a table: resumable, with a failure as a row and nothing lost."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import archsearch
from archsearch import timing
from archsearch.latency.cases import Case
from archsearch.latency.ceilings import Ceilings
from archsearch.latency.ceilings import measure_ceilings
from archsearch.latency.journal import CASE
from archsearch.latency.journal import DIED_AGAIN
from archsearch.latency.journal import Recorder
from archsearch.latency.journal import blank_row
from archsearch.latency.journal import died_on
from archsearch.latency.journal import recover
from archsearch.latency.nvml import Meter
from archsearch.latency.nvml import sensor
from archsearch.latency.plan import Pace
from archsearch.latency.plan import in_groups
from archsearch.latency.provenance import differences
from archsearch.latency.provenance import measured_hardware
from archsearch.latency.provenance import provenance
from archsearch.latency.provenance import session
from archsearch.latency.roofline import floor_us
from archsearch.latency.shelf import Shelf
from archsearch.latency.stack import Work
from archsearch.latency.stack import prepare
from archsearch.operators.fused.table import HEAD
from archsearch.operators.fused.table import STEPS
from archsearch.profiles import Table
from archsearch.profiles import empty_rows
from archsearch.profiles import source_hashes
from archsearch.profiles import source_name
from archsearch.profiles.store import META_FILE
from archsearch.profiles.store import is_current
from archsearch.profiles.store import read_table
from archsearch.timing import CPU_PASSES
from archsearch.timing import Timing

# done, total, remaining seconds
OnProgress = Callable[[int, int, float], None]

BUDGET_S = {"cpu": 0.24, "cuda": timing.ONE_REST_S}
# cases of a group are measured in turn, so that the passes over one lie seconds apart
GROUP = 64
MIN_REPEATS = {"decode": 30, "prefill": 7, "train": 5}
GPU_MIN_REPEATS = 3
# by how much the cost of a replay differs from graph to graph is nothing of this
MIN_REPLAY_US = 1000.0


def profile(
    cases: Iterable[Case],
    *,
    folder: Path,
    device: str = "cpu",
    budget_s: float | None = None,
    limit_s: float | None = None,
    retry: bool = False,
    on_progress: OnProgress | None = None,
) -> Table:
    """Measure the `cases` that the table in `folder` does not have yet, and save it; stop in
    good order after `limit_s` seconds.

    Rows of an interrupted or earlier sweep are kept; those that failed or are stale are measured
    again (one on which the process died twice only with `retry`). A table of other hardware,
    torch, method or format that lies there is set aside under another name. Raises OSError where
    `folder` cannot be written, or the GPU stops working.
    """
    cases = list(dict.fromkeys(cases))
    meta = provenance(device)
    old = _earlier(folder, meta)
    todo = _todo(old.rows, cases, retry=retry)
    cuda = device.startswith("cuda")
    ceilings = measure_ceilings(device) if cuda and todo else None
    table, number = _with_session(old, meta, todo, ceilings)
    recorder = Recorder(table, folder, number)
    budget_s = BUDGET_S["cuda" if cuda else "cpu"] if budget_s is None else budget_s
    passes = 1 if cuda else CPU_PASSES
    # what failed before may fail again: it comes last
    new = untried(old.rows, todo)
    failed = set(todo) - set(new)
    turns = _turns(new, device) + _turns([case for case in todo if case in failed], device)
    calls = [(case, again) for group in turns for again in range(passes) for case in group]
    pace, shelf = Pace(case for case, _ in calls), Shelf(device)
    begin = time.monotonic()
    try:
        for done, (case, again) in enumerate(calls):
            started = time.monotonic()
            if limit_s is not None and started - begin > limit_s:
                break
            if on_progress:
                on_progress(len(cases) - len(todo) + done // passes, len(cases), pace.left_s)
            recorder.begin(case)
            row = measure_case(
                case,
                device=device,
                budget_s=budget_s / passes,
                shelf=shelf if cuda else None,
                ceilings=ceilings,
            )
            recorder.add(case, row if not again else _quieter(recorder.row(case), row))
            pace.done(case, time.monotonic() - started)
            if cuda and row["error"]:
                _clean_up(case, row, shelf, recorder)
        else:
            if on_progress:
                on_progress(len(cases), len(cases), 0.0)
    finally:
        recorder.save()
    return recorder.table


def measure_case(
    case: Case,
    *,
    device: str = "cpu",
    budget_s: float = BUDGET_S["cpu"],
    shelf: Shelf | None = None,
    ceilings: Ceilings | None = None,
) -> dict[str, Any]:
    """Measure one case; what goes wrong becomes the row's `error`."""
    row = blank_row(case)
    meter = Meter(sensor(device))
    try:
        if device.startswith("cuda"):
            _give_back(device)
        work = prepare(case, device, shelf)
        row |= {"backend": work.backend, "stack": work.distinct, "stack_bytes": work.num_bytes}
        row |= {"bytes": work.cost.bytes, "flops": work.cost.flops}
        floor = row["roofline_us"] = floor_us(work.cost, measured_hardware(device))
        measured = _time(case, work, device, budget_s, meter)
        if ceilings is not None:
            # a model pays for the replay of its graph once: predictions add it
            measured = measured.plus(-ceilings.replay_us / measured.calls)
        measured = measured.per(work.count)
        if measured.p10_us <= 0:
            raise RuntimeError("it takes no longer than the replay of an empty CUDA graph")
        if floor is not None and measured.p50_us < floor:
            raise RuntimeError(
                f"measured {measured.p50_us:.3g} us, below the floor of {floor:.3g} us"
            )
    except Exception as error:
        return row | {"error": failure(error)}
    reading = meter.reading
    kernels = None if measured.kernels is None else round(measured.kernels)
    return row | {
        "latency_us_p10": measured.p10_us,
        "latency_us_p50": measured.p50_us,
        "latency_us_p90": measured.p90_us,
        "repeats": measured.repeats,
        "kernels": kernels,
        "steady_us": measured.steady_us,
        "energy_j": reading.energy_j(measured.steady_us),
        "power_w": reading.power_w,
        "sm_clock_mhz": reading.sm_clock_mhz,
        "throttled": reading.throttled,
        "used_cuda_graph": measured.used_cuda_graph,
    }


def missing(rows: pd.DataFrame, cases: Iterable[Case]) -> list[Case]:
    """Those of the cases that the rows have no time for."""
    return untried(rows[rows["error"] == ""], cases)


def untried(rows: pd.DataFrame, cases: Iterable[Case]) -> list[Case]:
    """Those of the cases that have no row, not even a failed one."""
    known = set(rows[CASE].itertuples(index=False, name=None))
    return [case for case in cases if tuple(asdict(case).values()) not in known]


def _give_back(device: str) -> None:
    """Memory that the allocator keeps from large cases before is no use to a CUDA graph, which
    allocates from a pool of its own."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if kept > torch.cuda.get_device_properties(device).total_memory // 4:
        torch.cuda.empty_cache()


def _time(case: Case, work: Work, device: str, budget_s: float, meter: Meter) -> Timing:
    cuda = device.startswith("cuda")
    with torch.inference_mode(case.phase != "train"):
        return timing.measure(
            work.call,
            device=device,
            # on a CPU one call is one layer; on a GPU all of them, twice: the second is watched
            warmup=2 if cuda else work.distinct,
            min_repeats=GPU_MIN_REPEATS if cuda else MIN_REPEATS[case.phase],
            budget_s=budget_s,
            min_replay_us=MIN_REPLAY_US,
            before=work.before,
            during=meter,
        )


def failure(error: Exception) -> str:
    """What went wrong and, unless it is the user's input, where in this package."""
    message = str(error).splitlines()[0] if str(error) else ""
    text = f"{type(error).__name__}: {message}"
    root = str(Path(archsearch.__file__).parent)
    places = [
        f"{Path(frame.filename).relative_to(root)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(root)
    ]
    return text if isinstance(error, ValueError) or not places else f"{text} ({places[-1]})"


def _todo(rows: pd.DataFrame, cases: list[Case], *, retry: bool) -> list[Case]:
    left = missing(rows, cases)
    return left if retry else untried(rows[rows["error"].str.startswith(DIED_AGAIN)], left)


def _turns(todo: list[Case], device: str) -> list[list[Case]]:
    if device.startswith("cuda"):
        return in_groups(todo)
    return [todo[begin : begin + GROUP] for begin in range(0, len(todo), GROUP)]


def _quieter(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The measurement with the lower median; one that failed only if both did."""
    if first["error"] or second["error"]:
        return first if second["error"] else second
    return min(first, second, key=lambda row: row["latency_us_p50"])


def _with_session(
    old: Table, meta: dict[str, Any], todo: list[Case], ceilings: Ceilings | None
) -> tuple[Table, int]:
    """The table to be filled, with an entry for this stretch of measuring, and its number."""
    used = set(old.rows["session"])
    sessions = [entry for entry in old.meta.get("sessions", []) if entry["id"] in used]
    number = max((entry["id"] for entry in sessions), default=-1) + 1
    if todo:
        known = {} if ceilings is None else ceilings.to_dict()
        sessions.append(session(number, meta, known))
    names = {*old.rows["operator"], *(case.operator for case in todo)}
    # a row that the fused step was measured for depends on its sources too
    names |= {source_name(name, "triton") for name in names.intersection((*STEPS, HEAD))}
    meta = {**meta, "sources": source_hashes(names), "sessions": sessions}
    return Table(old.name, old.rows, meta, old.path), number


def _earlier(folder: Path, meta: dict[str, Any]) -> Table:
    """The rows in `folder` that still hold; a table they cannot be mixed with is moved aside."""
    empty = Table(folder.name, empty_rows(), {}, folder)
    if not (folder / META_FILE).exists():
        return empty
    if not is_current(folder):
        _set_aside(folder, "")
        return empty
    recover(folder)
    table, is_stale = read_table(folder)
    if differences(table.meta, meta):
        _set_aside(folder, str(table.meta.get("measured", "")))
        return empty
    kept = table.rows[~is_stale].reset_index(drop=True)
    return Table(folder.name, kept, table.meta, folder)


def _set_aside(folder: Path, measured: str) -> None:
    stamp = measured.replace(":", "")[:17]
    os.rename(folder, folder.with_name(f"{folder.name}-until-{stamp or os.getpid()}"))


def _clean_up(case: Case, row: dict[str, Any], shelf: Shelf, recorder: Recorder) -> None:
    """After a failure on a GPU: free its memory, and stop where the GPU does not work any more."""
    with suppress(RuntimeError):
        shelf.clear()
    if not still_works(shelf.device):
        recorder.add(case, row | {"error": f"{died_on(recorder.table, case)}: {row['error']}"})
        raise OSError(
            f"the GPU stopped working at {case} ({row['error']}); what was measured is saved:"
            " run the command again to go on"
        )


def check_alive(device: str, error: str) -> None:
    """Raise OSError where a failed kernel has taken the GPU's context with it."""
    if device.startswith("cuda") and not still_works(device):
        raise OSError(
            f"the GPU stopped working ({error}); what was measured is saved: run the command"
            " again to go on"
        )


def still_works(device: str) -> bool:
    """Whether a GPU still computes after a failure there."""
    try:
        torch.cuda.synchronize(device)
        return bool(torch.randn(2, device=device).isfinite().all())
    except RuntimeError:
        return False
