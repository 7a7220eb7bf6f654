"""Every fused kernel compiles for a Hopper GPU, without one, and keeps the order that dependent
launches ask for (see `operators/fused/device.py`).

Run: pytest tests/operators/fused/test_compiles.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from archsearch import operators
from archsearch.model import Layer
from archsearch.operators.fused import table

# what real models have: heads of 128, hidden sizes that are no power of two
WIDTHS = {"attention": 896, "deltanet": 2048}
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"head_dim": 64, "num_heads": 14, "num_kv_heads": 2, "qkv_bias": True},
    "sliding_window": {"qk_norm": True, "window": 512},
}
# several rows are normed, and the shares of a split product added up, by kernels of their own
LAUNCHES = {
    1: {"ffn": 2, "mamba": 4, "mla": 5, "rwkv7": 4, "": 3},
    32: {"ffn": 4, "mamba": 7, "mamba2": 7, "mla": 8, "": 5}
    | dict.fromkeys(("deltanet", "gated_deltanet", "gated_deltaproduct", "kda"), 6),
}
# kernels that move little let the next one start before they wait
SMALL = ("norm_kernel", "conv_kernel", "gather_kernel", "merge_kernel", "mix_kernel")
# those whose programs count, before they wait, who has read what one of them will overwrite
COUNTS = ("trapezoid_kernel",)
MOST_SHARED = 227 * 1024


@pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
def test_for_hopper() -> None:
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, __file__],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Hopper:
    """A driver that knows a GPU's architecture and has none."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def compile_all() -> None:
    """Make every step launch nothing, and look at what it would have launched."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from archsearch.operators.fused import blocks
    from archsearch.operators.fused import device

    driver.set_active(Hopper())
    device.is_hopper = lambda: True
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))
        return kernels[-1]

    JITFunction.run = compile_only
    split = {"*": blocks.Blocks(32, 32, 64, 4, splits=4)}
    for name, batch, setting in (
        *((name, batch, None) for name in table.STEPS for batch in (1, 32)),
        ("mamba2", 32, split),
    ):
        kernels.clear()
        token = blocks.forced.set(setting)
        step(name, batch)
        blocks.forced.reset(token)
        known = LAUNCHES[batch]
        launches = known.get(name, known[""])
        assert len(kernels) == launches, f"{name}: {len(kernels)} launches"
        for kernel in kernels:
            check(kernel.asm["ptx"], kernel.metadata.name, f"{name}, {batch} rows")
            assert kernel.metadata.shared <= MOST_SHARED
            assert kernel.metadata.launch_pdl


def step(name: str, batch: int) -> None:
    from archsearch.operators import backends
    from archsearch.operators.fused import dispatch

    operator = operators.get(name)
    width, kind = WIDTHS.get(name, 1024), torch.bfloat16
    layer = Layer(operator.build(operator.configure(width, **OPTIONS.get(name, {}))), 1e-6)
    layer.to(kind)
    with torch.inference_mode():
        state = layer.mixer.init_state(batch, 1200, kind, "cpu")
        h = torch.zeros(batch, width, dtype=kind)
        position = torch.zeros(batch, dtype=torch.long)
        active = torch.ones(batch, dtype=torch.bool)
        request = backends.Request(name, "decode", "cuda", kind)
        assert dispatch.refuses(layer.mixer, request) == ""
        run = dispatch._module(name).step
        run(layer.mixer, layer.norm, h, state, position, active)


def check(ptx: str, kernel: str, case: str) -> None:
    """Wait, let the next one start (small kernels: the other way round), write: in this order."""
    what = f"{case}, {kernel}"
    lines = [line.strip() for line in ptx.splitlines()]
    lets = [index for index, line in enumerate(lines) if "launch_dependents" in line]
    waits = [index for index, line in enumerate(lines) if "griddepcontrol.wait" in line]
    assert len(lets) == 1, f"{what} lets the next kernel start {len(lets)} times"
    assert waits, f"{what} does not wait"
    assert (lets[0] < waits[0]) == (kernel in SMALL), (
        f"{what} lets the next kernel start too early"
    )
    before = lines[: waits[-1]]
    writes = r"st\.global|red\.global" + ("" if kernel in COUNTS else "|atom")
    early = [line for line in before if re.search(rf"\b({writes})", line)]
    assert not early, f"{what} writes before it waits: {early[0]}"
    # nobody leaves without having waited
    assert not any(re.search(r"\bret;|\bexit;", line) for line in before), f"{what} ends early"


if __name__ == "__main__":
    compile_all()
