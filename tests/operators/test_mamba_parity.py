"""Mamba against transformers' Mamba mixer (its plain PyTorch path).

The parameters carry the official names: a state dict loads as it is.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from archsearch import operators
from archsearch.operators import backends
from archsearch.operators.layer import Mixer
from archsearch.operators.mamba import kernel
from archsearch.operators.mamba.chunked import CHUNK
from archsearch.operators.mamba.chunked import scan_chunked
from archsearch.operators.mamba.reference import scan
from archsearch.operators.sequence import SequenceInfo

WIDTH = 96
OPTIONS: list[dict[str, Any]] = [
    {},
    {"d_state": 6, "expand": 1, "d_conv": 3, "dt_rank": 5, "conv_bias": False},
]


def pair(options: dict[str, Any]) -> tuple[Mixer, nn.Module, MambaConfig]:
    """Our layer with random weights, theirs with the same weights, and their config."""
    operator = operators.get("mamba")
    config = operator.configure(WIDTH, **options)
    ours = operator.build(config)
    ours.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    their_config = MambaConfig(
        hidden_size=config.hidden_size,
        state_size=config.d_state,
        expand=config.expand,
        conv_kernel=config.d_conv,
        use_conv_bias=config.conv_bias,
        time_step_rank=config.dt_rank,
        num_hidden_layers=1,
    )
    theirs = MambaMixer(their_config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval(), their_config


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(2))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    error = (actual - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.2e}"


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "other"])
class TestParity:
    def test_forward_and_gradients(self, options: dict[str, Any]) -> None:
        ours, theirs, _ = pair(options)
        x = tokens(2, 70).requires_grad_()
        weight = tokens(2, 70).flip(1)
        results = []
        for mixer in (ours, theirs):
            y = mixer(x)
            named = dict(mixer.named_parameters())
            gradients = torch.autograd.grad(
                (y * weight).sum(), [x, *(named[name] for name in sorted(named))]
            )
            results.append((y, *gradients))
        for actual, expected in zip(*results, strict=True):
            assert_close(actual, expected)

    @torch.no_grad()
    def test_cached_decode(self, options: dict[str, Any]) -> None:
        ours, theirs, config = pair(options)
        x = tokens(2, 60)
        cache = DynamicCache(config=config)
        state = ours.init_state(2, 60, torch.float32, "cpu")
        assert_close(ours(x[:, :50], state=state), theirs(x[:, :50], cache_params=cache))
        active = torch.ones(2, dtype=torch.bool)
        for t in range(50, 60):
            y = ours.mix_step(x[:, t], state, torch.full((2,), t), active)
            assert_close(y, theirs(x[:, t : t + 1], cache_params=cache)[:, 0])

    @torch.no_grad()
    def test_left_padding(self, options: dict[str, Any]) -> None:
        ours, theirs, _ = pair(options)
        x = tokens(2, 60)
        seq = SequenceInfo.padded([60, 23], 60, side="left")
        mask = seq.segments
        expected = theirs(x, attention_mask=mask)
        assert_close(ours(x, seq=seq), expected * mask[..., None])


@pytest.mark.parametrize("length", [1, CHUNK, 2 * CHUNK + 3])
def test_hand_written_backward(length: int) -> None:
    """With an initial state, and with a gradient that comes from the final one."""
    generator = torch.Generator().manual_seed(3)
    sizes = [(2, length, 3), (2, length, 3), (3, 4), (2, length, 4), (2, length, 4), (2, 3, 4)]
    x, dt, a, b, c, state = (torch.randn(size, generator=generator) for size in sizes)
    inputs = [t.requires_grad_() for t in (x, dt.exp(), -a.exp(), b, c, state)]
    results = []
    for form in (scan_chunked, scan):
        y, final = form(*inputs)
        gradients = torch.autograd.grad(y.sin().sum() + final.cos().sum(), inputs)
        results.append((y, final, *gradients))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


def checked_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
) -> tuple[Tensor, Tensor]:
    """What upstream's `selective_scan_fn` asks of its inputs, and gives."""
    assert a.dtype == d.dtype == torch.float32
    for tensor in (u, delta, b, c, z):
        assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1, "upstream would copy"
        assert tensor.dtype == u.dtype
    if delta_bias is not None:
        delta = delta.float() + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta.float())
    u_, delta, b, c = (t.float().transpose(1, 2) for t in (u, delta, b, c))
    y, state = scan(u_, delta, a, b, c)
    y = (y.transpose(1, 2) + d[:, None] * u) * F.silu(z.float())
    assert return_last_state
    return y.to(u.dtype), state


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "other"])
@pytest.mark.parametrize("lengths", [[40, 40], [40, 13], [1, 1]])
def test_scan_with_time_last(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], lengths: list[int]
) -> None:
    """How tensors and a state are handed to mamba-ssm's scan, which runs on a GPU alone."""
    package = "mamba_ssm.ops.selective_scan_interface"
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(selective_scan_fn=checked_scan))
    monkeypatch.setattr(backends, "_lacks", lambda backend, device: "")
    monkeypatch.setattr(kernel, "refuses", lambda request, d_state: "")
    mixer, _, _ = pair(options)
    length = max(lengths)
    x = tokens(2, length).requires_grad_()
    fresh = SequenceInfo.padded(lengths, length)
    further = SequenceInfo.padded(lengths, length, starts=torch.tensor(lengths))
    results = []
    for backend in ("mamba_ssm", "reference"):
        state = mixer.init_state(2, 2 * length, torch.float32, "cpu")
        with backends.override(backend, "mamba"), backends.override("torch", "short_conv"):
            y = mixer(x, seq=fresh)
            gradients = torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])
            with torch.no_grad():
                outputs = [mixer(x, state=state, seq=seq) for seq in (fresh, further)]
        results.append((y, *gradients, *outputs, *state.tensors.values()))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"d_state": 0}, "d_state is wrong: .* greater than 0"), ({"dt_rank": -1}, "dt_rank")],
)
def test_bad_settings_get_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operators.get("mamba").configure(WIDTH, **options)
