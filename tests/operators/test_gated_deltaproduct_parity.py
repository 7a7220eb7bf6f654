"""Gated DeltaProduct against the naive form of flash-linear-attention, which nobody here wrote,
and against its layer written out with plain operations."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch import operators
from archsearch.operators.gated_deltaproduct.chunked import chunk_delta_product
from archsearch.operators.gated_deltaproduct.chunked import delta_product_step
from archsearch.operators.gated_deltaproduct.module import GatedDeltaProduct
from archsearch.operators.gated_deltaproduct.reference import recurrent_delta_product

HIDDEN, KEY, VALUE = 64, 24, 16


@pytest.fixture(scope="module")
def naive(load_naive: Callable[[str], ModuleType]) -> ModuleType:
    return load_naive("ops/gated_delta_product/naive.py")


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"relative error {error:.1e}"


def draw(length: int, writes: int, decay: float) -> tuple[Tensor, ...]:
    """q, k, v, beta up to 2, log_decay down to -`decay`, and a state."""
    generator = torch.Generator().manual_seed(length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    q = F.normalize(normal(2, length, 3, KEY), dim=-1)
    k = F.normalize(normal(2, length, writes, 3, KEY), dim=-1)
    v, beta = normal(2, length, writes, 3, VALUE), 2 * normal(2, length, writes, 3).sigmoid()
    log_decay = -decay * torch.rand(2, length, 3, generator=generator)
    return q, k, v, beta, log_decay, normal(2, 3, KEY, VALUE)


def upstream(naive: ModuleType, inputs: Any) -> tuple[Tensor, Tensor]:
    """Theirs, which takes the writes of all tokens in a row."""
    q, k, v, beta, log_decay, state = inputs
    k, v, beta, writes = k.flatten(1, 2), v.flatten(1, 2), beta.flatten(1, 2), k.shape[2]
    o, final = naive.naive_recurrent_gated_delta_product(
        q,
        k,
        v,
        log_decay,
        beta,
        KEY**-0.5,
        initial_state=state,
        output_final_state=True,
        num_householder=writes,
    )
    return o, final


@pytest.mark.parametrize("form", [recurrent_delta_product, chunk_delta_product])
@pytest.mark.parametrize(
    ("length", "writes", "decay"),
    [(1, 2, 1.0), (17, 2, 0.01), (32, 1, 1.0), (50, 3, 1.0), (70, 2, 40.0), (3, 40, 1.0)],
)
def test_recurrence(
    naive: ModuleType,
    form: Callable[..., tuple[Tensor, Tensor]],
    length: int,
    writes: int,
    decay: float,
):
    inputs = [x.requires_grad_() for x in draw(length, writes, decay)]
    q, k, v, beta, log_decay, state = inputs
    expected = upstream(naive, inputs)
    actual = form(q * KEY**-0.5, k, v, state, beta, log_decay)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for x in expected]
    gradients = [
        torch.autograd.grad((o * weights[0]).sum() + (final * weights[1]).sum(), inputs)
        for o, final in (actual, expected)
    ]
    for left, right in zip(actual, expected, strict=True):
        assert_close(left, right)
    # a sum of strong decays loses digits of the weak ones
    for left, right in zip(*gradients, strict=True):
        assert_close(left, right, 1e-4)


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_steps(naive: ModuleType, writes: int):
    q, k, v, beta, log_decay, state = inputs = draw(40, writes, 0.5)
    expected, final = upstream(naive, inputs)
    state = state.clone()
    for t in range(40):
        o = delta_product_step(
            q[:, t] * KEY**-0.5, k[:, t], v[:, t], state, beta[:, t], log_decay[:, t]
        )
        assert_close(o, expected[:, t])
    assert_close(state, final)


def published(layer: GatedDeltaProduct, x: Tensor, naive: ModuleType) -> Tensor:
    """GatedDeltaProduct of flash-linear-attention, its fused parts written out."""
    weights = dict(layer.named_parameters())
    writes, heads = layer.num_householder, layer.num_v_heads

    def conv(name: str) -> Tensor:
        projected = F.linear(x, weights[f"{name}_proj.weight"]).mT
        taps = weights[f"{name}_conv.weight"]
        return F.silu(
            F.conv1d(F.pad(projected, (taps.shape[-1] - 1, 0)), taps, groups=len(taps))
        ).mT

    def unit(y: Tensor) -> Tensor:
        y = y / torch.sqrt(y.square().sum(-1, keepdim=True) + 1e-6)
        return y.repeat_interleave(heads // layer.num_heads, dim=-2)

    q = unit(conv("q").unflatten(-1, (layer.num_heads, KEY)))
    k = unit(conv("k").unflatten(-1, (writes, layer.num_heads, KEY)))
    v = conv("v").unflatten(-1, (writes, heads, VALUE))
    beta = F.linear(x, weights["b_proj.weight"]).sigmoid().unflatten(-1, (writes, heads))
    if layer.config.allow_neg_eigval:
        beta = beta * 2
    step = F.softplus(F.linear(x, weights["a_proj.weight"]) + weights["dt_bias"])
    log_decay = -weights["A_log"].exp() * step
    state = torch.zeros(len(x), heads, KEY, VALUE)
    o, _ = upstream(naive, (q, k, v, beta, log_decay, state))
    scale = torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5)
    o = (o * scale * weights["o_norm.weight"]).flatten(-2)
    return F.linear(o * F.silu(F.linear(x, weights["g_proj.weight"])), weights["o_proj.weight"])


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_householder": 3, "allow_neg_eigval": False}, {"num_v_heads": 6}],
)
@torch.no_grad()
def test_layer(naive: ModuleType, settings: dict[str, Any]):
    operator = operators.get("gdp")
    config = operator.configure(HIDDEN, num_heads=3, head_dim=KEY, v_head_dim=VALUE, **settings)
    layer = operator.build(config)
    assert isinstance(layer, GatedDeltaProduct)
    generator = torch.Generator().manual_seed(0)
    layer.init_weights(generator)
    for parameter in layer.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 70, HIDDEN, generator=generator)
    assert_close(layer(x), published(layer, x, naive))


def test_one_write_without_mirrors_is_gated_deltanet():
    product = operators.get("gdp").configure(HIDDEN, num_householder=1, allow_neg_eigval=False)
    layers = [
        operators.get("gdp").build(product),
        operators.get("gd").build(operators.get("gd").configure(HIDDEN)),
    ]
    layers[1].init_weights(torch.Generator().manual_seed(0))
    layers[0].load_state_dict(layers[1].state_dict())
    x = torch.randn(2, 40, HIDDEN, generator=torch.Generator().manual_seed(1))
    assert_close(layers[0](x), layers[1](x))


@pytest.mark.parametrize("width", [64, 128, 896, 1280, 1536, 1792, 2304, 2560, 3072])
def test_defaults_fit_every_width(width: int):
    config = operators.get("gdp").configure(width).model_dump()
    assert config["num_householder"] == 2
    assert config["num_heads"] == config["num_v_heads"] == round(0.75 * width / config["head_dim"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_householder": 0}, "num_householder is wrong"),
        ({"num_heads": 2, "num_v_heads": 3}, "num_v_heads must be a multiple of num_heads 2"),
    ],
)
def test_bad_config(overrides: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        operators.get("gated_deltaproduct").configure(HIDDEN, **overrides)
