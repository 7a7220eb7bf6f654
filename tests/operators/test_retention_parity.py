"""Retention against flash-linear-attention's naive form."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch import operators
from archsearch.operators.retention.chunked import chunk_retention
from archsearch.operators.retention.reference import log_decays
from archsearch.operators.retention.reference import recurrent_retention

Run = Callable[..., tuple[Tensor, Tensor]]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("run", [recurrent_retention, chunk_retention])
@pytest.mark.parametrize("length", [1, 63, 128, 150])
def test_recurrence(load_naive: Callable[[str], ModuleType], run: Run, length: int) -> None:
    naive = load_naive("ops/retention/naive.py").naive_retention
    draw = torch.Generator().manual_seed(length)
    q, k = (torch.randn(2, length, 3, 24, generator=draw) for _ in range(2))
    v = torch.randn(2, length, 3, 40, generator=draw)
    expected = naive(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    log_decay = log_decays(3, "cpu").expand(1, length, -1)
    o, _ = run(q, k, v, log_decay)
    assert_close(o, expected)
    # in two pieces, the second from the state that the first left
    half = length // 2
    if half:
        begun, state = run(q[:, :half], k[:, :half], v[:, :half], log_decay[:, :half])
        ended, _ = run(q[:, half:], k[:, half:], v[:, half:], log_decay[:, half:], state)
        assert_close(torch.cat([begun, ended], dim=1), expected)


def test_layer(load_naive: Callable[[str], ModuleType]) -> None:
    """The published layer, written out around the naive form."""
    naive = load_naive("ops/retention/naive.py").naive_retention
    mixer = operators.get("retention").build(operators.get("retention").configure(128))
    draw = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.2, generator=draw)
    w = dict(mixer.named_parameters())
    x = torch.randn(2, 70, 128, generator=draw)
    q, k = (F.linear(x, w[f"{name}_proj.weight"]).view(2, 70, 2, 64) for name in "qk")
    v, g = (F.linear(x, w[f"{name}_proj.weight"]).view(2, 70, 2, 128) for name in "vg")
    # rotation as multiplication by a complex number
    angles = torch.arange(70.0)[:, None] * 10000.0 ** (-torch.arange(32) / 32)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    q, k = (torch.complex(*t.chunk(2, dim=-1)) * turn for t in (q, k))
    q, k = (torch.cat([t.real, t.imag], dim=-1) for t in (q, k))
    o = naive(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * w["norm.weight"]
    assert_close(mixer(x), F.linear((o * F.silu(g)).flatten(2), w["o_proj.weight"]))
