"""Decode step, fresh prefill and training never look at a value on the host, so that a CUDA
graph can capture them: shown on the meta device, where there are no values.

Run: pytest tests/operators/test_capturable.py
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from archsearch import operators
from archsearch.generate import Session
from archsearch.generate.draw import Way
from archsearch.model import HybridLM
from archsearch.model import Layer
from archsearch.operators.sequence import SequenceInfo
from archsearch.space import parse

WIDTH = 128
# longer than the windows and chunks of the variants, and no multiple of them
LENGTH = 130
VARIANTS: dict[str, dict[str, Any]] = {
    "sliding_window": {"window": 16},
    "attention": {
        "qk_norm": True,
        "rope": {"type": "llama3", "factor": 8.0, "original_max_position": 64},
    },
}
# what reads a value, makes a shape of one, or brings a constant from the host
FORBIDDEN = (
    "_local_scalar_dense",
    "is_nonzero",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "unique",
)


class OnDevice(TorchDispatchMode):
    """Raises where an operation would wait for the device or copy from the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        name = func.overloadpacket.__name__
        assert not name.startswith(FORBIDDEN), f"{name} cannot be captured"
        given = list(tensors(args))
        masked = name.startswith("index") and any(t.dtype == torch.bool for t in given[1:])
        assert not masked, f"{name} by a mask cannot be captured"
        devices = {tensor.device.type for tensor in given}
        result = func(*args, **(kwargs or {}))
        devices |= {tensor.device.type for tensor in tensors([result])}
        assert len(devices) <= 1, f"{name} copies between {sorted(devices)}"
        return result


def tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            # a scalar on the CPU travels with the launch
            if value.dim() or value.device.type != "cpu":
                yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)


def make(name: str) -> Layer:
    operator = operators.get(name)
    mixer = operator.build(operator.configure(WIDTH, **VARIANTS.get(name, {})))
    return Layer(mixer, 1e-6).to("meta")


def tokens(*size: int) -> Tensor:
    return torch.empty(*size, WIDTH, device="meta")


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.max().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.to("meta"),
    ],
    ids=["item", "bool", "nonzero", "mask", "constant", "copy"],
)
def test_the_guard_sees_what_cannot_be_captured(wait: Callable[[Tensor], object]) -> None:
    x = torch.ones(3)
    with pytest.raises(AssertionError, match=r"cannot be captured|copies between"), OnDevice():
        wait(x)


@pytest.mark.parametrize("name", operators.names())
def test_decode_step(name: str) -> None:
    layer = make(name)
    state = layer.mixer.init_state(3, LENGTH, torch.float32, "meta")
    position = torch.zeros(3, dtype=torch.long, device="meta")
    active = torch.ones(3, dtype=torch.bool, device="meta")
    with torch.inference_mode(), OnDevice():
        assert layer.step(tokens(3), state, position, active).shape == (3, WIDTH)


@pytest.mark.parametrize("name", operators.names())
@pytest.mark.parametrize("told", [False, True])
def test_fresh_prefill(name: str, told: bool) -> None:
    layer = make(name)
    state = layer.mixer.init_state(3, LENGTH, torch.float32, "meta")
    seq = SequenceInfo.padded([LENGTH] * 3, LENGTH, device="meta") if told else None
    x = tokens(3, LENGTH)
    with torch.inference_mode(), OnDevice():
        assert layer(x, state=state, seq=seq).shape == x.shape


@pytest.mark.parametrize("name", operators.names())
def test_training(name: str) -> None:
    layer = make(name)
    x = tokens(3, LENGTH).requires_grad_()
    with OnDevice():
        gradients = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
    assert gradients[0].shape == x.shape


def test_whole_model() -> None:
    codes = " ".join(operator.code for operator in operators.OPERATORS)
    spec = parse(f"{codes} @{WIDTH}", vocab_size=97, num_meta_tokens=3, head_norm=True)
    model = HybridLM(spec, device="meta")
    ids = torch.empty(2, LENGTH, dtype=torch.long, device="meta")
    with torch.inference_mode():
        state = model.init_state(2, LENGTH + 1)
        with OnDevice():
            model.prefill(ids, state)
            assert model.step(ids[:, 0], state).shape == (2, 97)
    with OnDevice():
        torch.autograd.grad(model.loss(ids), [*model.parameters()])


@pytest.mark.parametrize("how", ["greedy", "open", "narrow", "whole"])
def test_step_of_a_session(how: Way) -> None:
    spec = parse(f"d f m2 a f @{WIDTH}", vocab_size=3000, num_meta_tokens=3, head_norm=True)
    session = Session(HybridLM(spec, device="meta"), batch_size=2, max_len=9)
    with torch.inference_mode(), OnDevice():
        session._step(how)


@pytest.mark.parametrize("name", operators.names())
@pytest.mark.parametrize("length", [5, 16, 61, 64])
def test_fresh_prefill_equals_the_padded_one(name: str, length: int) -> None:
    operator = operators.get(name)
    mixer = operator.build(operator.configure(WIDTH, **VARIANTS.get(name, {})))
    mixer.init_weights(torch.Generator().manual_seed(0))
    x = torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([x, x.new_full((2, 3, WIDTH), 9.0)], dim=1)
    states = [mixer.init_state(2, length + 3, torch.float32, "cpu") for _ in range(3)]
    plain = mixer(x, state=states[0])
    known = mixer(x, state=states[1], seq=SequenceInfo.padded([length] * 2, length))
    looked = mixer(padded, state=states[2], seq=SequenceInfo.padded([length] * 2, length + 3))
    assert torch.equal(known, plain)
    torch.testing.assert_close(looked[:, :length], plain, atol=1e-5, rtol=1e-4)
    for name, tensor in states[0].tensors.items():
        assert torch.equal(states[1][name], tensor), name
        torch.testing.assert_close(states[2][name], tensor, atol=1e-5, rtol=1e-4, msg=name)
