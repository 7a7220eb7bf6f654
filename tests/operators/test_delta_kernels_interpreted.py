"""flash-linear-attention's delta rules against the reference, on a CPU in Triton's interpreter.

DeltaNet's chunks take no fp32, so that they run in fp16; never bfloat16, whose products are wrong
there.

Run: pytest tests/operators/test_delta_kernels_interpreted.py
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch.operators import backends
from archsearch.operators.base import Phase
from archsearch.operators.sequence import SequenceInfo

LENGTHS = (1, 63, 65)
FP16, FP32 = torch.float16, torch.float32
CASES: list[tuple[str, dict[str, Any], torch.dtype, float]] = [
    ("deltanet", {"head_dim": 32, "v_head_dim": 16}, FP16, 1e-2),
    ("gated_deltanet", {"head_dim": 16, "num_heads": 1, "num_v_heads": 2}, FP32, 1e-4),
]


@pytest.mark.skipif(
    not (find_spec("triton") and find_spec("fla")), reason="needs triton and fla-core"
)
def test_kernels_equal_the_reference(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(__file__)


@pytest.mark.parametrize(
    ("name", "options", "phase", "dtype", "reason"),
    [
        ("deltanet", {}, "train", torch.bfloat16, ""),
        ("deltanet", {}, "prefill", FP32, "16-bit"),
        ("deltanet", {}, "decode", FP32, ""),
        ("deltanet", {"head_dim": 512, "num_heads": 1}, "prefill", FP16, "256"),
        ("deltanet", {"head_dim": 512, "num_heads": 1}, "decode", FP16, ""),
        ("gated_deltanet", {}, "train", torch.bfloat16, "issue 640"),
        ("gated_deltanet", {}, "prefill", torch.bfloat16, ""),
        ("gated_deltanet", {}, "prefill", FP32, "TF32"),
        ("gated_deltanet", {}, "decode", torch.float64, "float32, float16"),
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


def compare(
    name: str, options: dict[str, Any], dtype: torch.dtype, tolerance: float, length: int
) -> None:
    """The kernels' outputs, gradients and states against the fp32 reference's."""
    operator = operators.get(name)
    mixer = operator.build(operator.configure(32, conv_size=2, **options))
    mixer.init_weights(torch.Generator().manual_seed(0))
    for parameter in mixer.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        parameter.data.add_(0.2 * noise)
    mixer.to(dtype)
    actual = results(mixer, "fla", length)
    expected = results(mixer.float(), "reference", length)
    largest = max(float(v.norm()) for key, v in expected.items() if key.startswith("gradient"))
    for key, value in expected.items():
        # what nearly cancels keeps the rounding of the large gradients
        floor = 0.1 * largest if key.startswith("gradient") else 1e-9
        error = float((actual[key] - value).norm() / value.norm().clamp(min=floor))
        assert error < tolerance, f"{name}, {length} tokens: {key} is off by {error:.1e}"


def results(mixer: Any, backend: str, length: int) -> dict[str, Tensor]:
    """Everything that a layer computes: a training pass, a padded prompt from a state, and a
    decode step in which only the first row takes part."""
    dtype = mixer.o_proj.weight.dtype
    x = torch.randn(2, length, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    starts = torch.full((2,), length)
    further = SequenceInfo.padded([length, (length + 1) // 2], length, starts=starts)
    active = torch.tensor([True, False])
    state = mixer.init_state(2, 3 * length, dtype, "cpu")
    for tensor in state.tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)))
    with backends.override(backend, mixer.operator), backends.recorded() as used:
        y = mixer(x)
        named = dict(mixer.named_parameters())
        gradients = torch.autograd.grad(y.float().square().sum(), [*named.values()])
        with torch.no_grad():
            continued = mixer(x, state=state, seq=further)
            before = state["recurrent"].clone()
            step = mixer.mix_step(x[:, 0], state, 2 * starts, active)
    assert used[mixer.operator] == backend
    after = state["recurrent"]
    assert torch.equal(after[1], before[1]), "an inactive row changed"
    found = {"y": y, "continued": continued, "before": before, "step": step[:1], "after": after}
    found |= {f"gradient of {key}": g for key, g in zip(named, gradients, strict=True)}
    return {key: tensor.detach().float() for key, tensor in found.items()}


if __name__ == "__main__":
    import interpreted  # beside this file

    interpreted.prepare()
    for operator_name, settings, precision, limit in CASES:
        for tokens in LENGTHS:
            compare(operator_name, settings, precision, limit, tokens)
