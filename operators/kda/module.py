"""Kimi Delta Attention: DeltaNet's module with a decay per key channel and an output gate.

Legend: B rows, T tokens, H hidden size, N heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.common.time_step import init_dt_bias
from archsearch.operators.deltanet.module import DeltaNet
from archsearch.operators.deltanet.module import shut
from archsearch.operators.kda import kernel
from archsearch.operators.kda.chunked import chunk_kda
from archsearch.operators.kda.chunked import kda_step
from archsearch.operators.kda.config import KDAConfig
from archsearch.operators.kda.reference import recurrent_kda

MIN_RATE, MAX_RATE = 1.0, 16.0


class KDA(DeltaNet):
    """The delta rule on a state that forgets by exp(-exp(A_log) softplus(f + dt_bias)) per row."""

    operator = "kda"
    recurrence = staticmethod(recurrent_kda)
    chunked = staticmethod(chunk_kda)
    stepped = staticmethod(kda_step)
    READS = (*DeltaNet.READS, "f_proj.0", "f_proj.1", "g_proj.0", "g_proj.1")

    def __init__(self, config: KDAConfig) -> None:
        super().__init__(config)
        hidden, rank = config.hidden_size, config.v_head_dim
        keys, values = self.num_heads * self.head_dim, self.num_heads * self.v_head_dim
        self.f_proj = nn.Sequential(
            nn.Linear(hidden, rank, bias=False), nn.Linear(rank, keys, bias=False)
        )
        self.g_proj = nn.Sequential(
            nn.Linear(hidden, rank, bias=False), nn.Linear(rank, values, bias=True)
        )
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(keys))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """As DeltaNet; decay rates uniform in (1, 16), steps log-uniform in 0.001 to 0.1."""
        super().init_weights(generator)
        self.A_log.uniform_(MIN_RATE, MAX_RATE, generator=generator).log_()
        init_dt_bias(self.dt_bias, generator)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "fla" else ""

    def fused(
        self, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, *logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `DeltaNet.fused`; these kernels make the gates themselves."""
        write, decay = logits
        return kernel.chunk(q, k, v, state, write, decay, self.A_log, self.dt_bias)

    def fused_step(
        self, state: Tensor, q: Tensor, k: Tensor, v: Tensor, *logits: Tensor
    ) -> Tensor:
        """See `DeltaNet.fused_step`."""
        write, decay = logits
        return kernel.step_(state, q, k, v, write, decay, self.A_log, self.dt_bias)

    def logits(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of the write strength [...,N] and of the decay [...,N,K] of x[...,H]; where a
        token is not `real`[...], so low that nothing is written or forgotten."""
        decay = shut(self.f_proj(x), real).unflatten(-1, (self.num_heads, self.head_dim))
        return shut(self.b_proj(x), real), decay

    def gates(self, *logits: Tensor) -> tuple[Tensor, Tensor]:
        """Write strength [...,N] and logarithm of the decay [...,N,K] in fp32 of their logits."""
        bias = self.dt_bias.float().unflatten(0, (self.num_heads, self.head_dim))
        rate = self.A_log.float().exp()[:, None]
        return logits[0].float().sigmoid(), -rate * F.softplus(logits[1].float() + bias)

    def finish(self, o: Tensor, x: Tensor) -> Tensor:
        """Gate the normalised heads o[...,N,V] for x[...,H] and bring them back to H."""
        o = self.o_norm(o.to(x.dtype)).flatten(-2)
        return self.o_proj(o * self.g_proj(x).sigmoid())
