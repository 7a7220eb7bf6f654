"""Gated DeltaNet: DeltaNet's module with a decay per token and head, and an output gate.

Legend: H hidden size, G value heads, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.common.time_step import init_dt_bias
from archsearch.operators.deltanet.kernel import step_
from archsearch.operators.deltanet.module import DeltaNet
from archsearch.operators.deltanet.module import shut
from archsearch.operators.gated_deltanet import kernel
from archsearch.operators.gated_deltanet.config import GatedDeltaNetConfig
from archsearch.operators.gated_deltanet.reference import gated_delta_rule

MAX_DECAY = 16.0


class GatedDeltaNet(DeltaNet):
    """The delta rule on a state that forgets by exp(-exp(A_log) softplus(a + dt_bias))."""

    operator = "gated_deltanet"
    recurrence = staticmethod(gated_delta_rule)
    READS = (*DeltaNet.READS, "a_proj", "g_proj")
    config: GatedDeltaNetConfig

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
        init_dt_bias(self.dt_bias, generator)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "fla" else ""

    def fused(
        self, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, *logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `DeltaNet.fused`."""
        return kernel.chunk(q, k, v, state, *self.gates(*logits))

    def fused_step(
        self, state: Tensor, q: Tensor, k: Tensor, v: Tensor, *logits: Tensor
    ) -> Tensor:
        """See `DeltaNet.fused_step`."""
        write, decay = logits
        return step_(state, q, k, v, write, decay, self.A_log, self.dt_bias)

    def logits(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, ...]:
        """Logits of write strength and decay, [...,G] each, of x[...,H]; where a token is not
        `real`[...], so low that nothing is written or forgotten."""
        return (*super().logits(x, real), shut(self.a_proj(x), real))

    def gates(self, *logits: Tensor) -> tuple[Tensor, ...]:
        """Write strength and logarithm of the decay, [...,G] each in fp32, of their logits."""
        step = F.softplus(logits[1].float() + self.dt_bias.float())
        return (*super().gates(*logits), -self.A_log.float().exp() * step)

    def finish(self, o: Tensor, x: Tensor) -> Tensor:
        """Gate the normalised heads o[...,G,V] for x[...,H] and bring them back to H."""
        o = self.o_norm(o.to(x.dtype)).flatten(-2)
        if self.g_proj is not None:
            o = o * F.silu(self.g_proj(x))
        return self.o_proj(o)
