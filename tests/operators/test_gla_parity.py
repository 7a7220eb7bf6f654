"""Gated linear attention against flash-linear-attention's naive form, and under strong gates."""

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
from archsearch.operators.gla.chunked import chunk_gla
from archsearch.operators.gla.reference import recurrent_gla

Run = Callable[..., tuple[Tensor, Tensor]]


def inputs(length: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, log-decay and an initial state of 2 rows and 3 heads."""
    draw = torch.Generator().manual_seed(length)
    q, k, gate = (torch.randn(2, length, 3, 24, generator=draw) for _ in range(3))
    v = torch.randn(2, length, 3, 40, generator=draw)
    return q, k, v, F.logsigmoid(4 * gate), torch.randn(2, 3, 24, 40, generator=draw)


def assert_close(actual: Tensor, expected: Tensor, floor: float = 0.0) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-4 * expected.norm() + floor


@pytest.mark.parametrize("run", [recurrent_gla, chunk_gla])
@pytest.mark.parametrize("length", [1, 31, 64, 100])
def test_recurrence(load_naive: Callable[[str], ModuleType], run: Run, length: int) -> None:
    naive = load_naive("ops/gla/naive.py").naive_recurrent_gla
    *tokens, state = inputs(length)
    expected, final = naive(*tokens, initial_state=state, output_final_state=True)
    o, after = run(*tokens, state)
    assert_close(o, expected)
    assert_close(after, final)


def test_layer(load_naive: Callable[[str], ModuleType]) -> None:
    """The published layer, written out around the naive recurrence."""
    naive = load_naive("ops/gla/naive.py").naive_recurrent_gla
    mixer = operators.get("gla").build(operators.get("gla").configure(128))
    draw = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.2, generator=draw)
    w = dict(mixer.named_parameters())
    x = torch.randn(2, 70, 128, generator=draw)
    q, k = (F.linear(x, w[f"{name}_proj.weight"]).view(2, 70, 2, 32) for name in "qk")
    v, g = (F.linear(x, w[f"{name}_proj.weight"]).view(2, 70, 2, 64) for name in "vg")
    gate = F.linear(x, w["decay_down.weight"])
    gate = F.linear(gate, w["decay_up.weight"], w["decay_up.bias"]).view(2, 70, 2, 32)
    o, _ = naive(q, k, v, F.logsigmoid(gate) / 16)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * w["norm.weight"]
    assert_close(mixer(x), F.linear((o * F.silu(g)).flatten(2), w["o_proj.weight"]))


@pytest.mark.parametrize("normalizer", [1.0, 16.0])
@pytest.mark.parametrize("bias", [-15.0, 15.0])
def test_strong_gates(bias: float, normalizer: float) -> None:
    operator = operators.get("gla")
    mixer = operator.build(operator.configure(64, gate_normalizer=normalizer))
    draw = torch.Generator().manual_seed(1)
    mixer.init_weights(draw)
    with torch.no_grad():
        # some channels forget at once, beside others that hardly do
        mixer.get_parameter("decay_up.bias").fill_(bias)[::5] = -bias
    x = torch.randn(2, 100, 64, generator=draw, requires_grad=True)
    results = {}
    for backend in ("reference", "torch"):
        with backends.override(backend):
            y = mixer(x)
            gradients = torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])
        results[backend] = (y.detach(), *gradients)
    # saturated gates have gradients below the rounding of the others
    floor = 1e-7 * max(float(gradient.norm()) for gradient in results["reference"])
    for actual, expected in zip(results["torch"], results["reference"], strict=True):
        assert torch.isfinite(actual).all()
        assert_close(actual, expected, floor)
