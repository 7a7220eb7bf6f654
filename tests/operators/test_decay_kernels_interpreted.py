"""flash-linear-attention's kernels behind GLA, retention and RWKV-7 against the reference, on a
CPU in Triton's interpreter.

Never in bfloat16, whose products are wrong there.

Run: pytest tests/operators/test_decay_kernels_interpreted.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch.operators import backends
from archsearch.operators.base import Phase
from archsearch.operators.sequence import SequenceInfo

LENGTHS = (1, 63, 65)
TOLERANCE = 1e-4
OPERATORS = ("gla", "retention", "rwkv7")


@pytest.mark.skipif(
    not (find_spec("triton") and find_spec("fla")), reason="needs triton and fla-core"
)
@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_equal_the_reference(name: str, in_interpreter: Callable[..., None]) -> None:
    in_interpreter(__file__, name)


@pytest.mark.parametrize(
    ("name", "options", "phase", "dtype", "reason"),
    [
        # no scalar gate that varies with the token: the fault on Hopper GPUs is not theirs
        *((name, {}, "train", torch.bfloat16, "") for name in OPERATORS),
        *((name, {}, "prefill", torch.float32, "TF32") for name in OPERATORS),
        *((name, {}, "decode", torch.float32, "") for name in OPERATORS),
        ("gla", {"k_head_dim": 8}, "train", torch.bfloat16, "at least 16 wide"),
        ("retention", {"v_head_dim": 8}, "train", torch.bfloat16, "at least 16 wide"),
        ("rwkv7", {"head_dim": 512}, "prefill", torch.bfloat16, "at most 256 wide"),
        ("rwkv7", {"head_dim": 8}, "decode", torch.bfloat16, ""),
        ("rwkv7", {}, "decode", torch.float64, "float32, float16"),
    ],
)
def test_refusals(
    hopper_refusal: Callable[..., str],
    name: str,
    options: dict[str, int],
    phase: Phase,
    dtype: torch.dtype,
    reason: str,
) -> None:
    refusal = hopper_refusal(name, options, phase, dtype)
    assert reason in refusal and bool(reason) == bool(refusal), refusal


def results(name: str, backend: str, length: int) -> dict[str, Tensor]:
    """Outputs, gradients and states of a small layer by one backend."""
    operator = operators.get(name)
    mixer = operator.build(operator.configure(64, head_dim=32))
    mixer.init_weights(torch.Generator().manual_seed(0))
    x = torch.randn(2, length, 64, generator=torch.Generator().manual_seed(1))
    starts = torch.full((2,), length)
    sizes = torch.tensor([length, (length + 1) // 2])
    further = SequenceInfo.padded(sizes, length, starts=starts)
    active = torch.tensor([True, False])
    with backends.override(backend, name), backends.recorded() as used:
        found = {"y": mixer(x)}
        named = dict(mixer.named_parameters())
        gradients = torch.autograd.grad(found["y"].square().sum(), [*named.values()])
        found |= dict(zip(named, gradients, strict=True))
        found["y"] = found["y"].detach()
        state = mixer.init_state(2, 2 * length + 1, torch.float32, "cpu")
        with torch.no_grad():
            found["prompt"] = mixer(x, state=state)
            found["continued"] = mixer(x, state=state, seq=further)
            found["before"] = state["recurrent"].clone()
            found["step"] = mixer.mix_step(x[:, 0], state, starts + sizes, active)[:1]
    assert used[name] == backend
    assert torch.equal(state["recurrent"][1], found["before"][1]), "an inactive row changed"
    return {**found, "after": state["recurrent"]}


if __name__ == "__main__":
    import interpreted  # beside this file

    interpreted.prepare()
    for length in LENGTHS:
        exact = results(sys.argv[1], "reference", length)
        fast = results(sys.argv[1], "fla", length)
        for key, expected in exact.items():
            # gradients that cancel keep the rounding of the large ones
            size = max(float(expected.norm()), 1e-2 * float(exact["o_proj.weight"].norm()))
            error = float((fast[key] - expected).norm()) / size
            print(f"{sys.argv[1]:10} {length:3} {key:20} {error:.1e}")
            assert error < TOLERANCE, f"{sys.argv[1]}, {length} tokens: {key} is off: {error:.1e}"
