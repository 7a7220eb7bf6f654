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
# a GPU that has rested so long keeps its highest clocks for at least the next while, whatever
# runs; then it gives way to its power cap, by an amount that differs from card to card
# (experiments/power-cap)
REST_S = 0.1
FULL_CLOCKS_S = 0.02
# seconds of samples for which one rest is enough: a burst of short replays fills more than half
ONE_REST_S = FULL_CLOCKS_S / 2
# after so long at work clocks have settled, and NVML's power, renewed each 0.1 s, is of this work
STEADY_AFTER_S = 0.125
# so long samples are enough to know the median of that
STEADY_S = 0.01
# less work than that is no interruption of a rest
LIGHT_S = 0.005
# so many replays are queued at most without a host wait
CUDA_BURST = 200
# a burst of more replays is one of short replays
SHORT_BURST = 12
# of a first impression
ONCE_REPLAYS = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """Quantiles of one call in microseconds, and how they were obtained; on a GPU with the
    number of kernels that the call launches, where it could be counted. A sample was the mean of
    `calls` in a row.

    On a GPU the quantiles are those of its highest clocks, as far as these last (REST_S);
    `steady_us` is the median once it has been at work for so long that its power cap holds, where
    that was asked for."""

    p10_us: float
    p50_us: float
    p90_us: float
    repeats: int
    used_cuda_graph: bool = False
    kernels: float | None = None
    calls: int = 1
    steady_us: float | None = None

    @property
    def sustained_us(self) -> float:
        """The median of one call after another."""
        return self.p50_us if self.steady_us is None else self.steady_us

    def per(self, count: float) -> Timing:
        """The share of one out of `count` equal parts of the call."""
        return replace(
            self,
            p10_us=self.p10_us / count,
            p50_us=self.p50_us / count,
            p90_us=self.p90_us / count,
            kernels=None if self.kernels is None else self.kernels / count,
            steady_us=None if self.steady_us is None else self.steady_us / count,
        )

    def plus(self, us: float) -> Timing:
        """The call with so many microseconds more (or less) in every quantile."""
        return replace(
            self,
            p10_us=self.p10_us + us,
            p50_us=self.p50_us + us,
            p90_us=self.p90_us + us,
            steady_us=None if self.steady_us is None else self.steady_us + us,
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
    rest_s: float = REST_S,
    threads: int = CPU_THREADS,
    before: Callable[[], object] | None = None,
    during: Callable[[], bool] | None = None,
) -> Timing:
    """Time `fn()` repeatedly for about `budget_s` seconds, at least `min_repeats` times.

    One sample is the mean of `inner` calls in a row. On "cuda" the calls are captured in one
    CUDA graph and its replays are timed by events; what cannot be captured raises. A graph that
    takes less than `min_replay_us` is captured again with more calls in a row. It is replayed
    for FULL_CLOCKS_S at a time, behind a rest of `rest_s` (0: for what draws little power). With
    `during` the GPU first works until it does so steadily, which gives `steady_us`; `during()`,
    called on the host meanwhile, says whether the GPU has power to spare: it keeps its highest
    clocks then, and no rest is needed. On a CPU torch computes with `threads` threads, and
    `before()` runs untimed ahead of every sample.
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
        if 1e-6 * once_us * (warmup + ONCE_REPLAYS) > LIGHT_S:
            _worked(device)
        if once_us < min_replay_us:
            more = math.ceil(min_replay_us / once_us)
            inner *= more
            recording = cudagraph.record(fn, device=device, warmup=1, times=inner)
            recording.replay()
            once_us *= more
        count = burst_size(once_us)
        with no_garbage_collection(collect=False):
            steady_us, has_spare = None, False
            if during is not None:
                samples, has_spare = _steady(
                    recording, device, count, min_repeats, budget_s, during
                )
                steady_us = float(np.median(samples))
            if not has_spare:
                samples = _from_rest(recording, device, count, min_repeats, budget_s, rest_s)
        timing = summarize(samples, used_cuda_graph=True)
        timing = replace(timing, kernels=recording.kernels, calls=inner, steady_us=steady_us)
        return timing.per(inner)
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


def _from_rest(
    recording: Recording,
    device: str,
    count: int,
    min_repeats: int,
    budget_s: float,
    rest_s: float,
) -> list[float]:
    """Samples of replays within FULL_CLOCKS_S of a rest, or first behind it; `budget_s` in all."""
    samples: list[float] = []
    burst_s, rested_until = 0.0, 0.0
    while len(samples) < min_repeats or sum(samples) < 1e6 * budget_s:
        if time.perf_counter() + burst_s > rested_until:
            # what the host did since the last work was a rest already
            time.sleep(max(0.0, _worked_at.get(device, 0.0) + rest_s - time.perf_counter()))
            rested_until = time.perf_counter() + FULL_CLOCKS_S
        burst = _burst(recording, device, count, _nothing)
        samples += burst
        burst_s = 1e-6 * sum(burst)
        _worked(device)
        if len(samples) >= MAX_REPEATS:
            break
    return samples


def _steady(
    recording: Recording,
    device: str,
    count: int,
    min_repeats: int,
    budget_s: float,
    during: Callable[[], bool],
) -> tuple[list[float], bool]:
    """Samples behind STEADY_AFTER_S of nothing else, and whether the GPU had power to spare; if
    not, STEADY_S of them are enough."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < STEADY_AFTER_S:
        _burst(recording, device, count, _nothing)
    samples: list[float] = []
    seen: list[bool] = []
    while len(samples) < min_repeats or sum(samples) < 1e6 * (budget_s if all(seen) else STEADY_S):
        samples += _burst(recording, device, count, lambda: seen.append(during()))
    _worked(device)
    return samples, all(seen)


# when each GPU was last seen at more than light work
_worked_at: dict[str, float] = {}


def _worked(device: str) -> None:
    _worked_at[device] = time.perf_counter()


def _once_us(recording: Recording, device: str) -> float:
    """A first impression of what one replay takes."""
    # the first replay after recording is slower
    recording.replay()
    return _burst(recording, device, 1, _nothing)[0]


def burst_size(once_us: float) -> int:
    """Replays of `once_us` each that are queued at once."""
    return max(1, min(CUDA_BURST, int(1e6 * FULL_CLOCKS_S / max(once_us, 1.0))))


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
