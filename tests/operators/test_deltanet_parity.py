"""DeltaNet against the naive forms of flash-linear-attention, which nobody here wrote."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch import operators
from archsearch.operators import Shape
from archsearch.operators.common.delta_rule import chunked_delta_rule
from archsearch.operators.common.delta_rule import delta_rule_step
from archsearch.operators.deltanet.module import DeltaNet
from archsearch.operators.deltanet.reference import delta_rule

BATCH, HEADS, KEY, VALUE = 2, 3, 24, 40
FORMS = (delta_rule, chunked_delta_rule)


@pytest.fixture(scope="module")
def naive(load_naive: Callable[[str], ModuleType]) -> ModuleType:
    return load_naive("ops/delta_rule/naive.py")


def draw(length: int) -> tuple[Tensor, ...]:
    """q, k, v, beta and a state, with heads before time as the naive forms want them."""
    generator = torch.Generator().manual_seed(length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    q, k = (F.normalize(normal(BATCH, HEADS, length, KEY), dim=-1) for _ in range(2))
    v, beta = normal(BATCH, HEADS, length, VALUE), normal(BATCH, HEADS, length).sigmoid()
    return q, k, v, beta, normal(BATCH, HEADS, KEY, VALUE)


def ours(
    form: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run a form on heads-first tensors; the naive forms scale the queries, ours do not."""
    q, k, v, beta = (x.transpose(1, 2) for x in (q * KEY**-0.5, k, v, beta))
    o, final = form(q, k, v, state, beta)
    return o.transpose(1, 2), final


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error < 1e-5, f"relative error {error:.1e}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 31, 32, 33, 150])
def test_recurrence(naive: ModuleType, form: Callable[..., tuple[Tensor, Tensor]], length: int):
    inputs = [x.requires_grad_() for x in draw(length)]
    expected = naive.delta_rule_recurrence(*inputs)
    actual = ours(form, *inputs)
    weights = draw(length)[2], draw(length)[4]
    gradients = [
        torch.autograd.grad((o * weights[0]).sum() + (final * weights[1]).sum(), inputs)
        for o, final in (actual, expected)
    ]
    for left, right in zip(actual, expected, strict=True):
        assert_close(left, right)
    for left, right in zip(*gradients, strict=True):
        assert_close(left, right)


@pytest.mark.parametrize("form", FORMS)
def test_chunked_form(naive: ModuleType, form: Callable[..., tuple[Tensor, Tensor]]):
    *inputs, state = draw(128)
    expected = naive.delta_rule_chunkwise(*inputs)
    for left, right in zip(ours(form, *inputs, torch.zeros_like(state)), expected, strict=True):
        assert_close(left, right)


def test_step(naive: ModuleType):
    q, k, v, beta, state = draw(1)
    expected, final = naive.delta_rule_recurrence(q, k, v, beta, state)
    o = delta_rule_step(q[:, :, 0] * KEY**-0.5, k[:, :, 0], v[:, :, 0], state, beta[:, :, 0])
    assert_close(o, expected[:, :, 0])
    assert_close(state, final)


def test_layer(naive: ModuleType):
    """The released layer, put together from the naive recurrence and torch's own functions."""
    config = operators.get("d").configure(96, num_heads=3, head_dim=24)
    layer = operators.get("d").build(config)
    assert isinstance(layer, DeltaNet)
    layer.init_weights(torch.Generator().manual_seed(0))
    x = torch.randn(2, 50, 96, generator=torch.Generator().manual_seed(1))

    def conv(name: str) -> Tensor:
        y = getattr(layer, f"{name}_proj")(x).mT
        weight = getattr(layer, f"{name}_conv").weight
        y = F.silu(F.conv1d(y, weight, padding=3, groups=72)[..., :50])
        return y.unflatten(1, (3, 24)).mT

    def unit(y: Tensor) -> Tensor:
        return y * torch.rsqrt(y.square().sum(-1, keepdim=True) + 1e-6)

    beta = layer.b_proj(x).sigmoid().mT
    o, _ = naive.delta_rule_recurrence(unit(conv("q")), unit(conv("k")), conv("v"), beta)
    o = F.rms_norm(o.transpose(1, 2), (24,), layer.o_norm.weight, 1e-5)
    assert_close(layer(x), layer.o_proj(o.flatten(2)))


def test_parameters_of_the_released_layer():
    config = operators.get("deltanet").configure(2048)
    cost = operators.get("deltanet").cost(config, Shape(dtype="bfloat16"))
    assert cost.parameters == 4 * 2048**2 + 16 * 2048 + 3 * 4 * 2048 + 128
    assert cost.state_bytes == 4 * 16 * 128 * 128 + 2 * 3 * 3 * 2048


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet"])
@pytest.mark.parametrize("kept", ["float32", "model"])
def test_state_dtype_in_a_half_precision_model(name: str, kept: str):
    layer = operators.get(name).build(operators.get(name).configure(64, state_dtype=kept))
    layer.init_weights(torch.Generator().manual_seed(0))
    x = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(1))
    expected = layer(x)
    layer, x = layer.bfloat16(), x.bfloat16()
    state = layer.init_state(2, 20, torch.bfloat16, "cpu")
    assert state["recurrent"].dtype == (torch.float32 if kept == "float32" else torch.bfloat16)
    active = torch.ones(2, dtype=torch.bool)
    steps = [layer.mix_step(x[:, t], state, torch.full((2,), t), active) for t in range(20)]
    actual = torch.stack(steps, dim=1)
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() / expected.norm() < 0.05
