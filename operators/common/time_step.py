"""Initial time steps of state-space models: log-uniform, stored as the bias of a softplus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


@torch.no_grad()
def init_dt_bias(bias: Tensor, generator: torch.Generator) -> None:
    """Fill `bias` so that softplus(bias) is log-uniform in [DT_MIN, DT_MAX]."""
    bias.uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator)
    dt = bias.exp().clamp_(min=DT_FLOOR)
    # the inverse of softplus, exact for small steps too
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))
