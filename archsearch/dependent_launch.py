"""The kernel that ends a CUDA graph, and why: with a programmatic edge behind its last other
kernel, the driver replays *all* kernels of a graph with about 0.3 us less between each two.

Measured on an H200 with CUDA 13 (experiments/launch-gaps): whether that edge comes last in the
graph decides, not how many there are. Without it a decode step of 550 kernels takes 12 % longer,
and the parts of a model, recorded alone, end in either way by chance of what kernel came last,
so that their times do not add up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait


def end_kernel(device_index: int) -> Callable[[], object]:
    """Launch a kernel on the device that waits for all before it and writes one value."""
    sink = torch.zeros(1, device=f"cuda:{device_index}")

    def launch() -> None:
        with torch.cuda.device(device_index):
            _end[(1,)](sink, num_warps=1, launch_pdl=True)

    return launch


@triton.jit
def _end(sink):  # type: ignore[no-untyped-def]
    gdc_wait()
    tl.store(sink, 1.0)
