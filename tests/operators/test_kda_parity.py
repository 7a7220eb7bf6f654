"""The layer of Kimi Delta Attention against the published one, written out with plain operations
and flash-linear-attention's naive recurrence. The recurrence itself: test_decaying_delta_rules."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch import operators
from archsearch.operators.kda.module import KDA

HIDDEN, HEADS, KEY, VALUE = 64, 3, 24, 16


@pytest.fixture(scope="module")
def naive(load_naive: Callable[[str], ModuleType]) -> ModuleType:
    return load_naive("ops/kda/naive.py")


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"relative error {error:.1e}"


def published(layer: KDA, x: Tensor, naive: ModuleType) -> Tensor:
    """KimiDeltaAttention of flash-linear-attention, its fused parts written out."""
    weights = dict(layer.named_parameters())

    def conv(name: str) -> Tensor:
        projected = F.linear(x, weights[f"{name}_proj.weight"]).mT
        taps = weights[f"{name}_conv.weight"]
        y = F.conv1d(F.pad(projected, (taps.shape[-1] - 1, 0)), taps, groups=len(taps)).mT
        return F.silu(y).unflatten(-1, (HEADS, -1))

    def low_rank(name: str) -> Tensor:
        inner = F.linear(x, weights[f"{name}_proj.0.weight"])
        bias = weights.get(f"{name}_proj.1.bias")
        y = F.linear(inner, weights[f"{name}_proj.1.weight"], bias)
        return y.unflatten(-1, (HEADS, -1))

    q, k, v = conv("q"), conv("k"), conv("v")
    q, k = (y / torch.sqrt(y.square().sum(-1, keepdim=True) + 1e-6) for y in (q, k))
    step = F.softplus(low_rank("f") + weights["dt_bias"].view(HEADS, KEY))
    log_decay = -weights["A_log"].exp().view(HEADS, 1) * step
    beta = F.linear(x, weights["b_proj.weight"]).sigmoid()
    o, _ = naive.naive_recurrent_kda(q, k, v, log_decay, beta)
    scale = torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5)
    o = o * scale * weights["o_norm.weight"] * low_rank("g").sigmoid()
    return F.linear(o.flatten(-2), weights["o_proj.weight"])


@torch.no_grad()
def test_layer(naive: ModuleType):
    config = operators.get("kda").configure(
        HIDDEN, num_heads=HEADS, head_dim=KEY, v_head_dim=VALUE
    )
    layer = operators.get("kda").build(config)
    assert isinstance(layer, KDA)
    generator = torch.Generator().manual_seed(0)
    layer.init_weights(generator)
    for parameter in layer.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 70, HIDDEN, generator=generator)
    assert_close(layer(x), published(layer, x, naive))


@torch.no_grad()
def test_decays_begin_as_published():
    layer = operators.get("kda").build(operators.get("kda").configure(4096, head_dim=4))
    assert isinstance(layer, KDA)
    layer.init_weights(torch.Generator().manual_seed(0))
    rates, steps = layer.A_log.exp(), F.softplus(layer.dt_bias)
    assert rates.min() >= 1 and rates.max() < 16
    assert rates.mean() == pytest.approx(8.5, abs=0.5)
    assert steps.min() >= 0.99e-3 and steps.max() <= 1.01e-1
    # log-uniform: half of them below the geometric mean
    assert (steps < 1e-2).float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("width", [64, 128, 896, 1280, 1536, 1792, 2304, 2560, 3072])
def test_heads_fill_every_width(width: int):
    config = operators.get("kda").configure(width).model_dump()
    assert config["num_heads"] * config["head_dim"] == width
    assert config["v_head_dim"] == config["head_dim"]
