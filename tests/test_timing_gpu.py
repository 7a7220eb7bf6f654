"""The timer on a GPU replays a CUDA graph and is near what the bytes allow; a call that cannot
be recorded leaves CUDA as it was. Run: make gpu"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from archsearch import cudagraph
from archsearch import hardware
from archsearch.timing import measure

pytestmark = pytest.mark.gpu


def test_a_large_copy_takes_what_the_memory_allows() -> None:
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), device="cuda")
    assert timing.used_cuda_graph
    peaks = hardware.describe("cuda").peaks
    if peaks is not None:
        floor_us = 2 * 2**30 / peaks.bandwidth_bytes_s * 1e6
        assert floor_us < timing.p50_us < 2 * floor_us


def test_kernels_are_counted_and_the_host_looks_on() -> None:
    x = torch.ones(1 << 20, device="cuda")
    looks: list[bool] = []

    def look() -> bool:
        looks.append(True)
        return True

    timing = measure(lambda: x.mul_(1).add_(1), device="cuda", inner=3, during=look)
    assert timing.kernels == 2
    assert looks
    # with power to spare one measurement is both
    assert timing.steady_us == timing.p50_us


def test_with_power_to_spare_no_rest_is_needed() -> None:
    large = torch.ones(2**28, device="cuda")
    found = [
        measure(lambda: large.sum(), device="cuda", during=during)
        for during in (lambda: True, lambda: False)
    ]
    assert found[0].p50_us == pytest.approx(found[1].p50_us, rel=0.02)
    assert found[0].steady_us == pytest.approx(found[1].steady_us, rel=0.02)


def waits_at_once() -> None:
    float(torch.ones(1, device="cuda"))


def breaks_the_capture() -> None:
    # it behaves until then
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream().synchronize()


def raises_halfway() -> None:
    torch.ones(1 << 20, device="cuda").add_(1)
    if torch.cuda.is_current_stream_capturing():
        raise ZeroDivisionError


@pytest.mark.parametrize("fn", [waits_at_once, breaks_the_capture, raises_halfway])
def test_what_cannot_be_recorded_raises_and_leaves_cuda_usable(fn: Callable[[], None]) -> None:
    stream = torch.cuda.current_stream()
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        cudagraph.record(fn)
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.synchronize()
    held = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    del held
    torch.cuda.empty_cache()
    assert torch.rand(8, device="cuda").max() < 1
    x = torch.zeros(1000, device="cuda")
    recording = cudagraph.record(lambda: x.add_(1), warmup=2, times=4)
    recording.replay()
    assert x.sum().item() == 6 * 1000
    assert recording.kernels == 4


def test_a_wait_is_told_before_the_capture() -> None:
    with pytest.raises(RuntimeError, match="synchronizing"):
        cudagraph.record(waits_at_once)


def test_the_fast_end_changes_no_result_and_is_not_counted() -> None:
    x = torch.zeros(1000, device="cuda")
    found = []
    for fast_end in (False, True):
        x.zero_()
        recording = cudagraph.record(lambda: x.add_(1), times=500, fast_end=fast_end)
        for _ in range(3):
            recording.replay()
        found.append((x.sum().item(), recording.kernels))
    assert found[0] == found[1] == (1502 * 1000, 500)
