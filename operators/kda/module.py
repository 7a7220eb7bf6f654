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
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows

MIN_RATE, MAX_RATE = 1.0, 16.0


class KDA(DeltaNet):
    """The delta rule on a state that forgets by exp(-exp(A_log) softplus(f + dt_bias)) per row."""

    operator = "kda"
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

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        # not x: under autocast the projections have the dtype that the kernels compute in
        backend, dtype = self.backend(q), q.dtype
        q, k, v = self.split(
            self.q_conv(q, rows, state, "q_conv", activation="silu"),
            self.k_conv(k, rows, state, "k_conv", activation="silu"),
            self.v_conv(v, rows, state, "v_conv", activation="silu"),
        )
        logits = self.logits(x, rows.mask(x))
        initial = None if state is None else state["recurrent"]
        final: Tensor | None
        if backend == "fla":
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
            o, final = kernel.chunk(q, k, v, initial, *logits, *self.decay_weights())
        else:
            if initial is None:
                size = (len(x), self.num_heads, self.head_dim, self.v_head_dim)
                initial = x.new_zeros(size, dtype=torch.float32)
            rule = recurrent_kda if backend == "reference" else chunk_kda
            o, final = rule(*self.normalize(q, k), v, initial, *self.gates(*logits))
        if state is not None:
            assert final is not None, "a form that was given a state returned none"
            state.update("recurrent", final)
        return self.finish(o, x)

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        backend, memory = self.backend(q, "decode"), state["recurrent"]
        q, k, v = self.split(
            self.q_conv.step(q, state, active, "q_conv", activation="silu"),
            self.k_conv.step(k, state, active, "k_conv", activation="silu"),
            self.v_conv.step(v, state, active, "v_conv", activation="silu"),
        )
        logits = self.logits(x, active)
        if backend == "fla":
            o = kernel.step_(memory, q, k, v, *logits, *self.decay_weights())
        else:
            o = kda_step(*self.normalize(q, k), v, memory, *self.gates(*logits))
        return self.finish(o, x)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "fla" else ""

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

    def decay_weights(self) -> tuple[Tensor, Tensor]:
        """The logarithm of the rate [N] and the bias of the step [N*K]."""
        return self.A_log, self.dt_bias

    def finish(self, o: Tensor, x: Tensor) -> Tensor:
        """Gate the normalised heads o[...,N,V] for x[...,H] and bring them back to H."""
        o = self.o_norm(o.to(x.dtype)).flatten(-2)
        return self.o_proj(o * self.g_proj(x).sigmoid())
