"""Gated DeltaNet: DeltaNet's module with a decay per token and head, and an output gate.

Legend: H hidden size, G value heads, V value width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.deltanet.module import DeltaNet
from archsearch.operators.deltanet.module import mask
from archsearch.operators.gated_deltanet.config import GatedDeltaNetConfig
from archsearch.operators.gated_deltanet.reference import gated_delta_rule

MAX_DECAY = 16.0
MIN_STEP, MAX_STEP = 1e-3, 1e-1


class GatedDeltaNet(DeltaNet):
    """The delta rule on a state that forgets by exp(-exp(A_log) softplus(a + dt_bias))."""

    operator = "gated_deltanet"
    recurrence = staticmethod(gated_delta_rule)
    READS = (*DeltaNet.READS, "a_proj", "g_proj")

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__(config, config.num_v_heads)
        hidden, values = config.hidden_size, self.num_v_heads * self.v_head_dim
        self.a_proj = nn.Linear(hidden, self.num_v_heads, bias=False)
        self.g_proj = nn.Linear(hidden, values, bias=False) if config.use_gate else None
        self.A_log = nn.Parameter(torch.empty(self.num_v_heads))
        self.dt_bias = nn.Parameter(torch.empty(self.num_v_heads))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """As DeltaNet; decay rates uniform in (0, 16), steps log-uniform in 0.001 to 0.1."""
        super().init_weights(generator)
        # away from a rate of exactly 0, whose logarithm is infinite
        rates = self.A_log.uniform_(0, MAX_DECAY, generator=generator).clamp_(min=1e-4)
        rates.log_()
        low, high = math.log(MIN_STEP), math.log(MAX_STEP)
        steps = self.dt_bias.uniform_(low, high, generator=generator).exp()
        # the inverse of softplus
        self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def gates(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, ...]:
        """Write strength and logarithm of the decay, [...,G] each, of x[...,H] in fp32; both 0
        where a token is not `real`[...]."""
        step = F.softplus(self.a_proj(x).float() + self.dt_bias.float())
        log_decay = -self.A_log.float().exp() * step
        return (*super().gates(x, real), mask(log_decay, real))

    def finish(self, o: Tensor, x: Tensor) -> Tensor:
        """Gate the normalised heads o[...,G,V] for x[...,H] and bring them back to H."""
        o = self.o_norm(o.to(x.dtype)).flatten(-2)
        if self.g_proj is not None:
            o = o * F.silu(self.g_proj(x))
        return self.o_proj(o)
