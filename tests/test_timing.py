"""The timer and the hardware description."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from archsearch import cudagraph
from archsearch import hardware
from archsearch import timing


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_measures_wall_time() -> None:
    found = timing.measure(lambda: time.sleep(0.002), warmup=1, min_repeats=5, budget_s=0.02)
    assert found.repeats >= 5
    assert 2000 <= found.p10_us <= found.p50_us <= found.p90_us
    assert found.p10_us < 50_000
    assert not found.used_cuda_graph


def test_inner_calls_share_a_sample() -> None:
    calls = []
    found = timing.measure(
        lambda: calls.append(busy(0.001)), warmup=1, min_repeats=3, budget_s=0, inner=4
    )
    assert len(calls) >= 1 + 3 * 4
    assert 1000 <= found.p10_us < 3000


def test_minimum_of_repeats_outlasts_the_budget() -> None:
    calls = []
    timing.measure(lambda: calls.append(1), warmup=2, min_repeats=50, budget_s=0.0)
    assert len(calls) >= 52


def test_garbage_collector_and_threads_are_as_before() -> None:
    seen = []
    torch.set_num_threads(2)
    timing.measure(
        lambda: seen.append((gc.isenabled(), torch.get_num_threads())), min_repeats=1, budget_s=0
    )
    assert seen[-1] == (False, 1)
    assert gc.isenabled()
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        timing.measure(lambda: 1 / 0)
    assert gc.isenabled()


def test_samples_without_the_core_do_not_count() -> None:
    clean, preempted = (1_000_000, 990_000), (5_000_000, 1_000_000)
    assert timing.undisturbed([preempted, clean, preempted, clean], 2) == [1000.0, 1000.0]
    # too few: the ones that kept the core longest fill up
    half = (2_000_000, 1_000_000)
    assert timing.undisturbed([preempted, clean, half], 2) == [1000.0, 2000.0]


@pytest.mark.parametrize(("once_us", "rests"), [(40.0, 1), (2000.0, 3), (90_000.0, 5)])
def test_a_gpu_rests_before_its_highest_clocks_end(
    once_us: float, rests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, rested, slept = [100.0], [0.0], list[float]()

    def sleep(seconds: float) -> None:
        now[0] += seconds
        rested.append(now[0])
        slept.append(seconds)

    def burst(_recording: Any, _device: str, count: int, _during: Any) -> list[float]:
        begun, now[0] = now[0], now[0] + 1e-6 * count * once_us
        # one that is longer than the window begins with it
        assert now[0] <= rested[-1] + timing.FULL_CLOCKS_S + 1e-9 or begun == rested[-1]
        return [once_us] * count

    monkeypatch.setattr(timing, "_burst", burst)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "_worked_at", {"cuda": 99.95})
    count, budget_s = timing.burst_size(once_us), 0.015 if rests == 1 else 0.06
    found = timing._from_rest(None, "cuda", count, 5, budget_s, timing.REST_S)  # type: ignore[arg-type]
    assert len(found) >= 5
    # half of the first rest was over already
    assert slept == pytest.approx([timing.REST_S / 2, *[timing.REST_S] * (rests - 1)])


@pytest.mark.parametrize(
    ("once_us", "spare", "count"),
    # the budget; without power to spare only so many as tell the median; five of them at least
    [(1000.0, True, 20), (90_000.0, True, 5), (1000.0, False, 10), (90_000.0, False, 5)],
)
def test_steady_work_is_sampled_until_it_is_known(
    once_us: float, spare: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, watched = [100.0], [0]

    def burst(_recording: Any, _device: str, count: int, during: Any) -> list[float]:
        now[0] += 1e-6 * count * once_us
        watched[0] += during is not timing._nothing
        during()
        return [once_us] * count

    monkeypatch.setattr(timing, "_burst", burst)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "_worked_at", {})
    samples, has_spare = timing._steady(None, "cuda", 1, 5, 0.02, lambda: spare)  # type: ignore[arg-type]
    assert (len(samples), has_spare) == (count, spare)
    assert watched == [count]
    assert now[0] - 1e-6 * sum(samples) >= 100.0 + timing.STEADY_AFTER_S
    # whatever is measured next has to rest first
    assert timing._worked_at == {"cuda": now[0]}


@pytest.mark.parametrize("spare", [True, False])
def test_a_gpu_is_timed_once_if_it_has_power_to_spare(
    spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = SimpleNamespace(kernels=3, replay=lambda: None)
    monkeypatch.setattr(cudagraph, "record", lambda *_args, **_options: recording)
    monkeypatch.setattr(timing, "_once_us", lambda *_: 1000.0)
    monkeypatch.setattr(timing, "_steady", lambda *_: ([9.0, 10.0, 11.0], spare))
    monkeypatch.setattr(timing, "_from_rest", lambda *_: [7.0, 8.0, 9.0, 10.0, 11.0])
    found = timing.measure(lambda: None, device="cuda", during=lambda: spare)
    assert (found.p50_us, found.repeats) == ((10.0, 3) if spare else (9.0, 5))
    assert found.steady_us == found.sustained_us == 10.0
    # nobody asked for steady work
    found = timing.measure(lambda: None, device="cuda")
    assert (found.p50_us, found.steady_us, found.sustained_us) == (9.0, None, 9.0)


def test_quantiles_and_parts() -> None:
    found = timing.summarize([float(value) for value in range(1, 12)])
    assert (found.p10_us, found.p50_us, found.p90_us, found.repeats) == (2.0, 6.0, 10.0, 11)
    assert found.per(2).p50_us == 3.0


@pytest.mark.parametrize("wrong", [{"warmup": 0}, {"inner": 0}, {"min_repeats": 0}])
def test_counts_must_be_positive(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        timing.measure(lambda: None, **wrong)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("AMD EPYC", "amd-epyc"),
        ("AMD EPYC 9654 96-Core Processor", "amd-epyc-9654"),
        ("Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz", "intel-xeon-platinum-8480c"),
        ("AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "amd-ryzen-7-7840u"),
        ("NVIDIA H200", "nvidia-h200"),
        ("???", "unknown"),
    ],
)
def test_slug(name: str, slug: str) -> None:
    assert hardware.slugify(name) == slug


def test_describes_this_cpu() -> None:
    found = hardware.describe(threads=3)
    assert found.kind == "cpu"
    assert found.slug.startswith("cpu-")
    assert found.slug.endswith("-3t")
    assert found.cores >= 1
    assert found.to_dict()["name"] == found.name
    assert found.peaks is None
    with pytest.raises(ValueError, match="device must be"):
        hardware.describe("tpu")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_peaks_by_device_name(name: str, key: str) -> None:
    assert hardware.peaks(name) == hardware.PEAKS[key]
    assert hardware.peaks("Radeon") is None


def test_hardware_imports_without_torch() -> None:
    code = "import sys, archsearch.hardware, archsearch.timing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_before_runs_ahead_of_every_sample_untimed() -> None:
    order: list[str] = []
    found = timing.measure(
        lambda: order.append("fn"),
        before=lambda: order.append("before") or busy(0.002),  # type: ignore[func-returns-value]
        warmup=1,
        min_repeats=4,
        budget_s=0.0,
    )
    assert order == ["before", "fn"] * (len(order) // 2)
    assert found.p50_us < 1000
