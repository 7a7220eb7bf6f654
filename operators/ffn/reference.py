"""The two feed-forward formulas in fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, in the inputs' dtype."""
    g = gate.float()
    return (g * torch.sigmoid(g) * up.float()).to(up.dtype)


def relu2(up: Tensor) -> Tensor:
    """max(up, 0) squared, in the input's dtype."""
    return up.float().clamp(min=0).square().to(up.dtype)
