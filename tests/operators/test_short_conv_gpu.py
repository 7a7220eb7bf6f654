"""On a GPU: the fused short convolution equals the plain one, fresh, continued and by steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archsearch.operators import backends
from archsearch.operators.common.conv import ShortConv
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [256, 24, 20])
@pytest.mark.parametrize("length", [1, 2, 65])
@torch.inference_mode()
def test_fused_equals_plain(channels: int, length: int, dtype: torch.dtype) -> None:
    conv = ShortConv(channels, 4, bias=True).to("cuda", dtype)
    conv.init_weights(torch.Generator("cuda").manual_seed(0))
    x = torch.randn(3, length, channels, device="cuda", dtype=dtype)
    past = torch.randn(3, channels, 3, device="cuda", dtype=dtype)
    active = torch.tensor([True, False, True], device="cuda")
    results: dict[str, dict[str, Tensor]] = {}
    for backend in ("torch", "causal_conv1d"):
        with backends.override(backend, "short_conv"):
            fresh, more = State({"conv": past.clone()}), State({"conv": past.clone()})
            step = State({"conv": past.clone()})
            results[backend] = {
                "fresh": conv(x, Rows(), fresh),
                "fresh state": fresh["conv"],
                "continued": conv(x, Rows(starts=torch.ones(3, device="cuda")), more),
                "continued state": more["conv"],
                "step": conv.step(x[:, 0].contiguous(), step, active)[active],
                "step state": step["conv"],
            }
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    errors = {
        name: float((results["causal_conv1d"][name] - plain).float().norm() / plain.float().norm())
        for name, plain in results["torch"].items()
    }
    assert max(errors.values()) < limit, errors
