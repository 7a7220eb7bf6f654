"""The only timer: quantiles over many repeats, on a CPU clock or by CUDA-graph replay."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from archsearch import cudagraph

if TYPE_CHECKING:
    from archsearch.cudagraph import Recording

MAX_REPEATS = 100_000
# latency on a CPU means one thread: a decode step of a small model gains little from a second
# one, and waits milliseconds for it whenever anything else runs on the machine
CPU_THREADS = 1
# other work on a CPU only ever adds time, for a second at a time: what is measured there is
# measured so often, and the quietest measurement is kept
CPU_PASSES = 3
# a sample counts if the operating system left the core to it for this share of its time
CLEAN_SHARE = 0.95
# how many budgets may be spent on waiting for such samples
MAX_STRETCH = 3
# replays on a GPU are queued for so long without a host wait, and at most so many
CUDA_BURST_S = 0.025
CUDA_BURST = 200
# a burst of more replays is one of short replays
SHORT_BURST = 12


@dataclass(frozen=True, slots=True)
class Timing:
    """Quantiles of one call in microseconds, and how they were obtained; on a GPU with the
    number of kernels that the call launches, where it could be counted. A sample was the mean of
    `calls` in a row."""

    p10_us: float
    p50_us: float
    p90_us: float
    repeats: int
    used_cuda_graph: bool = False
    kernels: float | None = None
    calls: int = 1

    def per(self, count: float) -> Timing:
        """The share of one out of `count` equal parts of the call."""
        return replace(
            self,
            p10_us=self.p10_us / count,
            p50_us=self.p50_us / count,
            p90_us=self.p90_us / count,
            kernels=None if self.kernels is None else self.kernels / count,
        )

    def plus(self, us: float) -> Timing:
        """The call with so many microseconds more (or less) in every quantile."""
        return replace(
            self, p10_us=self.p10_us + us, p50_us=self.p50_us + us, p90_us=self.p90_us + us
        )


def measure(
    fn: Callable[[], object],
    *,
    device: str = "cpu",
    warmup: int = 3,
    min_repeats: int = 20,
    budget_s: float = 0.1,
    inner: int = 1,
    min_replay_us: float = 0.0,
    threads: int = CPU_THREADS,
    before: Callable[[], object] | None = None,
    during: Callable[[], object] | None = None,
) -> Timing:
    """Time `fn()` repeatedly for about `budget_s` seconds, at least `min_repeats` times.

    One sample is the mean of `inner` calls in a row. On "cuda" the calls are captured in one
    CUDA graph and its replays are timed by events; what cannot be captured raises. A graph that
    takes less than `min_replay_us` is captured again with more calls in a row. `during()`
    runs on the host several times while the GPU is busy with them. On a CPU torch computes
    with `threads` threads meanwhile, and `before()` runs untimed ahead of every sample.
    """
    if warmup < 1 or min_repeats < 1 or inner < 1:
        raise ValueError(
            f"warmup, min_repeats and inner must be positive; got {warmup}, {min_repeats}, {inner}"
        )
    if device.startswith("cuda"):
        if before is not None:
            raise ValueError("before is for CPU timings: a CUDA graph replays timed work alone")
        recording = cudagraph.record(fn, device=device, warmup=warmup, times=inner)
        once_us = _once_us(recording, device)
        if once_us < min_replay_us:
            inner *= math.ceil(min_replay_us / once_us)
            recording = cudagraph.record(fn, device=device, warmup=1, times=inner)
        with no_garbage_collection(collect=False):
            samples = _cuda_samples(recording, device, min_repeats, budget_s, during or _nothing)
        timing = summarize(samples, used_cuda_graph=True)
        return replace(timing, kernels=recording.kernels, calls=inner).per(inner)
    with cpu_threads(threads):
        samples = _cpu_samples(fn, before or _nothing, warmup, min_repeats, budget_s, inner)
    return replace(summarize(samples), calls=inner).per(inner)


def summarize(samples_us: list[float], *, used_cuda_graph: bool = False) -> Timing:
    """Quantiles of samples in microseconds."""
    p10, p50, p90 = (float(value) for value in np.quantile(samples_us, (0.1, 0.5, 0.9)))
    return Timing(p10, p50, p90, len(samples_us), used_cuda_graph)


def _cpu_samples(
    fn: Callable[[], object],
    before: Callable[[], object],
    warmup: int,
    min_repeats: int,
    budget_s: float,
    inner: int,
) -> list[float]:
    for _ in range(warmup):
        before()
        fn()
    samples: list[tuple[int, int]] = []
    num_clean = 0
    with no_garbage_collection():
        begin = time.perf_counter()
        while len(samples) < MAX_REPEATS:
            # on a busy machine, go on until enough samples were left alone
            stretch = 1 if num_clean >= min_repeats else MAX_STRETCH
            spent = time.perf_counter() - begin
            if len(samples) >= min_repeats and spent > stretch * budget_s:
                break
            before()
            wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
            for _ in range(inner):
                fn()
            cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
            samples.append((wall, cpu))
            num_clean += cpu >= CLEAN_SHARE * wall
    return undisturbed(samples, min_repeats)


def _nothing() -> None:
    pass


def undisturbed(samples: list[tuple[int, int]], min_repeats: int) -> list[float]:
    """Wall times in microseconds of the samples (wall ns, CPU ns) during which this thread kept
    its core; if they are fewer than `min_repeats`, those that kept it longest."""
    ranked = sorted(samples, key=lambda sample: sample[1] / max(sample[0], 1), reverse=True)
    clean = [wall / 1e3 for wall, cpu in ranked if cpu >= CLEAN_SHARE * wall]
    return clean if len(clean) >= min_repeats else [wall / 1e3 for wall, _ in ranked[:min_repeats]]


def _cuda_samples(
    recording: Recording,
    device: str,
    min_repeats: int,
    budget_s: float,
    during: Callable[[], object],
) -> list[float]:
    import torch

    count = burst_size(_once_us(recording, device))
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < min_repeats or time.perf_counter() < end:
        samples += _burst(recording, device, count, during)
        if len(samples) >= MAX_REPEATS:
            break
    torch.cuda.synchronize(device)
    return samples


def _once_us(recording: Recording, device: str) -> float:
    """A first impression of what one replay takes."""
    # the first replay after recording is slower
    recording.replay()
    return _burst(recording, device, 1, _nothing)[0]


def burst_size(once_us: float) -> int:
    """Replays of `once_us` each that are queued at once."""
    return max(1, min(CUDA_BURST, int(1e6 * CUDA_BURST_S / max(once_us, 1.0))))


def _burst(
    recording: Recording, device: str, count: int, during: Callable[[], object]
) -> list[float]:
    """Times of `count` replays in a row."""
    import torch

    with torch.cuda.device(torch.device(device)):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        if count > SHORT_BURST:
            # the first event shall find the GPU at work, not waiting for the next launch
            recording.replay()
        events[0].record()
        for event in events[1:]:
            recording.replay()
            event.record()
        during()
        events[-1].synchronize()
    return [1e3 * a.elapsed_time(b) for a, b in pairwise(events)]


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_garbage_collection(*, collect: bool = True) -> Iterator[None]:
    """Keep Python's garbage collector out of the samples; by default it runs once before."""
    was_enabled = gc.isenabled()
    if collect:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
