"""flash-linear-attention's Kimi Delta Attention and gated delta product against the reference, on
a CPU in Triton's interpreter, and what their adapters refuse.

The comparison is that of test_delta_kernels_interpreted.py.

Run: pytest tests/operators/test_kda_interpreted.py
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from archsearch.operators.base import Phase

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# the lengths to compare at: chunks have 64 tokens, of the gated delta product 64 writes as well
CASES: list[tuple[str, dict[str, Any], torch.dtype, float, tuple[int, ...]]] = [
    ("kda", {"num_heads": 1, "head_dim": 16, "v_head_dim": 32}, FP32, 1e-4, (65,)),
    ("kda", {"num_heads": 2, "head_dim": 24, "v_head_dim": 18}, FP32, 1e-4, (1, 9)),
    (
        "gated_deltaproduct",
        {"num_heads": 1, "num_v_heads": 2, "head_dim": 16},
        FP16,
        1e-2,
        (65,),
    ),
    (
        "gated_deltaproduct",
        {"num_householder": 3, "num_heads": 1, "head_dim": 16, "allow_neg_eigval": False},
        FP16,
        1e-2,
        (1, 23),
    ),
]


@pytest.mark.skipif(
    not (find_spec("triton") and find_spec("fla")), reason="needs triton and fla-core"
)
def test_kernels_equal_the_reference(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(__file__)


@pytest.mark.parametrize(
    ("name", "options", "phase", "dtype", "reason"),
    [
        ("kda", {}, "train", BF16, ""),
        ("kda", {}, "prefill", FP32, "TF32"),
        ("kda", {}, "decode", FP32, ""),
        ("kda", {}, "decode", torch.float64, "float32, float16"),
        ("kda", {"num_heads": 1, "head_dim": 512}, "prefill", FP16, "256"),
        ("kda", {"num_heads": 1, "head_dim": 512}, "decode", FP16, ""),
        ("kda", {"v_head_dim": 17}, "train", FP16, "even width"),
        ("gated_deltaproduct", {}, "train", BF16, "issue 640"),
        ("gated_deltaproduct", {}, "prefill", BF16, ""),
        ("gated_deltaproduct", {}, "prefill", FP32, "16-bit"),
        ("gated_deltaproduct", {}, "decode", FP32, ""),
        ("gated_deltaproduct", {"head_dim": 512}, "prefill", FP16, "256"),
    ],
)
def test_refusals(
    hopper_refusal: Callable[..., str],
    name: str,
    options: dict[str, Any],
    phase: Phase,
    dtype: torch.dtype,
    reason: str,
) -> None:
    refusal = hopper_refusal(name, options, phase, dtype)
    assert reason in refusal and bool(reason) == bool(refusal), refusal


if __name__ == "__main__":
    # beside this file
    import interpreted
    import test_delta_kernels_interpreted as delta

    interpreted.prepare()
    for *case, lengths in CASES:
        for tokens in lengths:
            delta.compare(*case, tokens)
