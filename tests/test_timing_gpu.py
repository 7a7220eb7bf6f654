"""The timer on a GPU replays a CUDA graph and is near what the bytes allow. Run: make gpu"""

from __future__ import annotations

import pytest
import torch

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
