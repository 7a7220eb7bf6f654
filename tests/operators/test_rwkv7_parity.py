"""RWKV-7 against flash-linear-attention's naive form, and under extreme gates."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch import operators
from archsearch.operators import backends
from archsearch.operators.rwkv7.chunked import chunk_rwkv7
from archsearch.operators.rwkv7.reference import recurrent_rwkv7

NAIVE = "ops/generalized_delta_rule/dplr/naive.py"
Run = Callable[..., tuple[Tensor, Tensor]]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-4 * expected.norm()


def run_naive(naive: ModuleType, r: Tensor, *tokens: Tensor, state: Tensor) -> list[Tensor]:
    """The naive recurrence, which is [B,N,T,D] and scales r."""
    r, k, v, a, b, w = (t.transpose(1, 2) for t in (r * r.shape[-1] ** 0.5, *tokens))
    o, final = naive.dplr_recurrence(r, k, v, a, b, w, initial_state=state)
    return [o.transpose(1, 2), final]


@pytest.mark.parametrize("run", [recurrent_rwkv7, chunk_rwkv7])
@pytest.mark.parametrize("length", [1, 31, 64, 150])
def test_recurrence(load_naive: Callable[[str], ModuleType], run: Run, length: int) -> None:
    draw = torch.Generator().manual_seed(length)
    r, k, v, kk, w, rate = (torch.randn(2, length, 3, 32, generator=draw) for _ in range(6))
    kk, w, rate = F.normalize(kk, dim=-1), -0.6065 * (4 * w).sigmoid(), rate.sigmoid()
    state = torch.randn(2, 3, 32, 32, generator=draw)
    expected, final = run_naive(load_naive(NAIVE), r, k, v, -kk, kk * rate, w, state=state)
    o, after = run(r, w, k, v, a=-kk, b=kk * rate, initial_state=state)
    assert_close(o, expected)
    assert_close(after, final)


def test_layer(load_naive: Callable[[str], ModuleType]) -> None:
    """The published layer (the first of a model), written out around the naive recurrence."""
    mixer = operators.get("rwkv7").build(operators.get("rwkv7").configure(128))
    draw = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.2, generator=draw)
    p = dict(mixer.named_parameters())
    x = torch.randn(2, 70, 128, generator=draw)
    shifted = torch.cat([torch.zeros(2, 1, 128), x[:, :-1]], dim=1)
    xr, xw, xk, xv, xa, xg = (x + (shifted - x) * mix for mix in p["mix_weights"])
    r, k, v = (F.linear(t, p[f"{n}_proj.weight"]) for n, t in (("r", xr), ("k", xk), ("v", xv)))
    low = F.linear(xw, p["decay_down.weight"]).tanh()
    low = F.linear(low, p["decay_up.weight"], p["decay_up.bias"])
    w = -0.6065306597126334 * low.sigmoid()
    rate = F.linear(xa, p["rate_down.weight"])
    rate = F.linear(rate, p["rate_up.weight"], p["rate_up.bias"]).sigmoid()
    g = F.linear(F.linear(xg, p["gate_down.weight"]).sigmoid(), p["gate_up.weight"])
    kk = F.normalize((k * p["k_k"]).view(2, 70, 2, 64), dim=-1)
    k = k + k * (rate - 1) * p["k_a"]
    r, w, k, v, rate = (t.view(2, 70, 2, 64) for t in (r, w, k, v, rate))
    state = torch.zeros(2, 2, 64, 64)
    o, _ = run_naive(load_naive(NAIVE), r, k, v, -kk, kk * rate, w, state=state)
    o = F.group_norm(o.reshape(140, 128), 2, p["norm.weight"], p["norm.bias"], 64e-5)
    o = o.view(2, 70, 2, 64) + (r * k * p["r_k"]).sum(-1, keepdim=True) * v
    assert_close(mixer(x), F.linear(o.flatten(2) * g, p["o_proj.weight"]))


@pytest.mark.parametrize("decay", [-15.0, 15.0])
@pytest.mark.parametrize("rate", [-15.0, 15.0])
def test_extreme_gates(decay: float, rate: float) -> None:
    operator = operators.get("rwkv7")
    mixer = operator.build(operator.configure(64))
    draw = torch.Generator().manual_seed(1)
    mixer.init_weights(draw)
    with torch.no_grad():
        mixer.get_parameter("decay_up.bias").fill_(decay)
        mixer.get_parameter("rate_up.bias").fill_(rate)
    x = torch.randn(2, 100, 64, generator=draw, requires_grad=True)
    results = {}
    for backend in ("reference", "torch"):
        with backends.override(backend):
            y = mixer(x)
            gradients = torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])
        results[backend] = (y.detach(), *gradients)
    for actual, expected in zip(results["torch"], results["reference"], strict=True):
        assert torch.isfinite(actual).all()
        assert_close(actual, expected)
