"""Compile the kernels of many cases in several processes, before anything is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from multiprocessing import get_context
from typing import Any

import torch

from archsearch import operators
from archsearch.latency.cases import PARTS
from archsearch.latency.cases import Case
from archsearch.latency.plan import in_groups
from archsearch.latency.shelf import Shelf
from archsearch.latency.stack import make_slots
from archsearch.operators.fused.table import PREFERRED

# done, total, remaining seconds
OnProgress = Callable[[int, int, float], None]

# backends whose kernels are compiled here; those of torch and of built packages are not
COMPILED = ("fla", "mamba_ssm", "triton")
# milliseconds per setting that an autotuner tries: a quarter of Triton's own
TUNING = {"warmup": 5, "rep": 25}
# what several processes may hold of states at once, in tokens of one layer
MOST_TOKENS = 2**18


def warm(
    cases: Iterable[Case],
    device: str,
    *,
    jobs: int,
    limit_s: float | None = None,
    on_progress: OnProgress | None = None,
) -> int:
    """Run what `to_compile` picks from the cases once, spread over `jobs` processes; nothing new
    begins after `limit_s` seconds. Returns how many of these groups ran; one that fails is left
    to the sweep, which says why. Raises BrokenProcessPool where a process died."""
    groups = to_compile(cases)
    jobs = min(jobs, len(groups))
    if jobs < 1:
        return 0
    context = get_context("spawn")
    begin = time.monotonic()
    deadline = None if limit_s is None else time.time() + limit_s
    ran = 0
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_take_turns, initargs=(context.Lock(),)
    ) as pool:
        runs = [pool.submit(run_group, group, device, deadline) for group in groups]
        for done, run in enumerate(as_completed(runs)):
            error = run.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            ran += error is None and run.result()
            if on_progress:
                left = (time.monotonic() - begin) / (done + 1) * (len(groups) - done - 1)
                on_progress(done + 1, len(groups), left)
    return ran


def to_compile(cases: Iterable[Case]) -> list[list[Case]]:
    """Per group of cases with compiled kernels: of each phase the smallest with one row, and the
    smallest with more, since kernels are specialised on a size of one; of fused decode steps one
    of every batch, and every context of few tokens."""
    return [
        [case for _, phase in groupby(group, key=lambda case: case.phase) for case in _few(phase)]
        for group in in_groups(case for case in cases if _compiles(case))
    ]


def _few(cases: Iterable[Case]) -> list[Case]:
    found: dict[tuple[int, int], Case] = {}
    for case in cases:
        # our own kernels have blocks by batch, and attention's split the room of its cache
        own = _is_fused(case)
        large = own and case.batch * case.context > MOST_TOKENS
        batch, context = (case.batch, case.context) if own else (min(case.batch, 2), 0)
        if not (large and any(known == batch for known, _ in found)):
            found.setdefault((batch, context), case)
    return list(found.values())


def run_group(cases: list[Case], device: str, deadline: float | None) -> bool:
    """Run one layer on each of the cases of a group; False if the time is over."""
    shelf = Shelf(device)
    for case in cases:
        if deadline is not None and time.time() > deadline:
            return False
        try:
            call = make_slots(case, shelf, 1)[0].call
            with torch.inference_mode(case.phase != "train"):
                call()
        except Exception:
            # the sweep meets it again, and makes it a row
            continue
    return True


def _compiles(case: Case) -> bool:
    if _is_fused(case):
        return True
    if case.operator in PARTS:
        return False
    return not {*COMPILED}.isdisjoint(operators.get(case.operator).backends)


def _is_fused(case: Case) -> bool:
    return case.phase == "decode" and case.operator in PREFERRED


def _take_turns(lock: Any) -> None:
    """In each process: compile at the same time, but let autotuners time kernels one by one."""
    torch.set_num_threads(1)
    if find_spec("triton") is None or not torch.cuda.is_available():
        return
    active = import_module("triton.runtime.driver").driver.active
    bench = active.get_benchmarker()

    def exclusive(call: Callable[[], object], quantiles: Any = None, **_: Any) -> Any:
        call()
        with lock:
            return bench(call, quantiles=quantiles, **TUNING)

    active.get_benchmarker = lambda: exclusive
