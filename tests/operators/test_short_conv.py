"""The short convolution: its forms on a CPU, and how it hands tensors to causal-conv1d.

That package runs on a GPU alone. A stand-in makes the checks of its C++ code, so that layouts
which it would refuse or copy fail here.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.operators import backends
from archsearch.operators.common.conv import ShortConv
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("length", "kernel"), [(1, 4), (2, 4), (50, 3), (7, 1)])
def test_both_forms_agree(
    monkeypatch: pytest.MonkeyPatch, length: int, kernel: int, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = ShortConv(48, kernel, bias=bias)
    conv.init_weights(generator)
    # a slice of a wider projection, as the mixers hand it over
    x = torch.randn(3, length, 96, generator=generator)[..., 48:].requires_grad_()
    results = []
    for available in (True, False):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda a=available: a)
        y = conv(x, Rows(), None)
        gradients = torch.autograd.grad(y.sin().sum(), [x, *conv.parameters()])
        results.append((y, *gradients))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def checked_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """What `causal_conv1d_fn` asks of x[B,C,T] and the state, and gives."""
    channels_last = x.stride(1) == 1 and x.stride(2) > 1
    assert channels_last or x.stride(2) == 1, "upstream would copy"
    if channels_last:
        assert not any(n % 8 for n in (x.shape[1], x.stride(0), x.stride(2), x.storage_offset()))
    past = x.new_zeros(len(x), x.shape[1], weight.shape[1] - 1)
    if initial_states is not None:
        assert channels_last and initial_states.dtype == x.dtype
        assert initial_states.shape == past.shape and initial_states.stride(1) == 1
        past = initial_states
    y = F.conv1d(torch.cat([past, x], dim=2), weight[:, None], bias, groups=x.shape[1])
    return F.silu(y) if activation == "silu" else y


def checked_update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    *,
    conv_state_indices: Tensor,
) -> Tensor:
    """What `causal_conv1d_update` asks of x[B,C] and the state, and does."""
    assert x.dtype == state.dtype and conv_state_indices.dtype == torch.int32
    y = torch.zeros_like(x)
    for row, slot in enumerate(conv_state_indices.tolist()):
        if slot >= 0:
            window = torch.cat([state[slot], x[row, :, None]], dim=1)
            state[slot] = window[:, 1:]
            y[row] = (window * weight).sum(1) + (0 if bias is None else bias)
    return F.silu(y) if activation == "silu" else y


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(causal_conv1d_fn=checked_fn, causal_conv1d_update=checked_update)
    monkeypatch.setitem(sys.modules, "causal_conv1d", module)
    monkeypatch.setattr(backends, "_lacks", lambda backend, device: "")


def inputs(layout: str, length: int, channels: int) -> Tensor:
    """x[3,T,C] as mixers hand it over."""
    generator = torch.Generator().manual_seed(1)
    if layout == "time last":
        x = torch.randn(2 * channels, 3 * length, generator=generator)
        return x.unflatten(1, (3, length))[channels:].permute(1, 2, 0)
    width = channels + (8 if layout == "slice" else 5)
    return torch.randn(3, length, width, generator=generator)[..., -channels:]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("layout", ["slice", "odd slice", "time last"])
@pytest.mark.parametrize("length", [1, 2, 8, 21])
@pytest.mark.parametrize(("channels", "kernel"), [(16, 4), (16, 2), (13, 3)])
def test_causal_conv1d_gets_what_it_takes(
    layout: str, length: int, channels: int, kernel: int
) -> None:
    conv = ShortConv(channels, kernel, bias=kernel != 3)
    conv.init_weights(torch.Generator().manual_seed(0))
    x = inputs(layout, length, channels)
    some, begun = torch.tensor([length, 1, (length + 1) // 2]), torch.tensor([5, 2, 9])
    active = torch.tensor([True, False, True])
    results: dict[str, list[Tensor]] = {}
    for backend in ("causal_conv1d", "torch"):
        state = State({"conv": conv.new_state(3, torch.float32, "cpu")})
        outputs = [conv(x, Rows(), None)]
        with torch.no_grad(), backends.override(backend), backends.recorded() as used:
            options: dict[str, Any] = {"activation": "silu"}
            for rows in (Rows(), Rows(None, begun), Rows(some, begun), Rows(some)):
                y = conv(x, rows, state, **options)
                outputs += [y[0], y[1, :1], y[2, : some[2]], state["conv"].clone()]
            y = conv.step(x[:, -1], state, active, **options)
            outputs += [y[active], state["conv"].clone()]
        assert used == {"short_conv": backend}
        results[backend] = outputs
    for actual, expected in zip(*results.values(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("kernel", "dtype", "reason"),
    [(1, torch.float32, "2, 3 or 4 taps, not 1"), (4, torch.float64, "float32, float16 and")],
)
def test_what_causal_conv1d_cannot_do_is_said(
    kernel: int, dtype: torch.dtype, reason: str
) -> None:
    conv = ShortConv(8, kernel, bias=False).to(dtype)
    x = torch.zeros(1, 5, 8, dtype=dtype)
    assert conv.backend(x) == "torch"
    with pytest.raises(ValueError, match=reason), backends.override("causal_conv1d"):
        conv.backend(x)
