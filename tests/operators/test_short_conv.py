"""The CPU's fast convolution against the plain sum over taps, which other devices use."""

from __future__ import annotations

import pytest
import torch

from archsearch.operators.common.conv import ShortConv
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
