"""mamba-ssm's Triton kernels against the reference, on a CPU in Triton's interpreter.

Skipped where triton or mamba-ssm is missing: mamba-ssm is a source package that wants a CUDA
compiler, so that it is no development dependency. Never in bfloat16, whose products are wrong
there.

Run: pytest tests/operators/test_mamba_kernels_interpreted.py
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

LENGTHS = (1, 63, 65)
# upstream's softplus is log(1 + exp(x)), which rounds short time steps
TOLERANCE = 1e-4
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mamba2", {"d_state": 16, "head_dim": 32, "num_groups": 2, "chunk_size": 32}),
    ("mamba", {"d_state": 6, "expand": 1}),
]


@pytest.mark.skipif(
    not (find_spec("triton") and find_spec("mamba_ssm")), reason="needs triton and mamba-ssm"
)
def test_kernels_equal_the_reference(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(__file__)


def compare(name: str, options: dict[str, Any], length: int) -> None:
    """The kernels' outputs, gradients and states; of Mamba-1 only decode is in Triton."""
    from archsearch import operators
    from archsearch.operators import backends
    from archsearch.operators.sequence import SequenceInfo

    operator = operators.get(name)
    mixer = operator.build(operator.configure(64, **options))
    mixer.init_weights(torch.Generator().manual_seed(0))
    x = torch.randn(2, length, 64, generator=torch.Generator().manual_seed(1))
    starts = torch.full((2,), length)
    further = SequenceInfo.padded([length] * 2, length, starts=starts)
    results: list[dict[str, Tensor]] = []
    for backend in ("mamba_ssm", "reference"):
        with backends.recorded() as used:
            scan = backend if name == "mamba2" else "reference"
            with backends.override(scan, name):
                result = {"y": mixer(x)}
                named = dict(mixer.named_parameters())
                gradients = torch.autograd.grad(result["y"].square().sum(), [*named.values()])
                result |= dict(zip(named, gradients, strict=True))
                state = mixer.init_state(2, 2 * length, torch.float32, "cpu")
                for tensor in state.tensors.values():
                    tensor.normal_(generator=torch.Generator().manual_seed(2))
                with torch.no_grad():
                    result["continued"] = mixer(x, state=state, seq=further)
            before = state["ssm"].clone()
            active = torch.tensor([True, False])
            with torch.no_grad(), backends.override(backend, name):
                y = mixer.mix_step(x[:, 0], state, 2 * starts, active)
            assert used[name] == backend
        assert torch.equal(state["ssm"][1], before[1]), "an inactive row changed"
        results.append({**result, "before": before, "step": y[:1], "after": state["ssm"]})
    for key, expected in results[1].items():
        error = float((results[0][key] - expected).norm() / expected.norm().clamp(min=1e-9))
        assert error < TOLERANCE, f"{name}, {length} tokens: {key} is off by {error:.1e}"


if __name__ == "__main__":
    import interpreted  # beside this file

    interpreted.prepare()
    for operator_name, settings in CASES:
        for tokens in LENGTHS:
            compare(operator_name, settings, tokens)
