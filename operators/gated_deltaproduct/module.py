"""Gated DeltaProduct: Gated DeltaNet's module with several keys, values and write strengths
per token.

Legend: B rows, T tokens, H hidden size, R writes per token, N key heads, G value heads,
K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn

from archsearch.operators.backends import Request
from archsearch.operators.common.conv import ShortConv
from archsearch.operators.gated_deltanet.module import GatedDeltaNet
from archsearch.operators.gated_deltaproduct import kernel
from archsearch.operators.gated_deltaproduct.chunked import chunk_delta_product
from archsearch.operators.gated_deltaproduct.chunked import delta_product_step
from archsearch.operators.gated_deltaproduct.config import GatedDeltaProductConfig
from archsearch.operators.gated_deltaproduct.reference import recurrent_delta_product
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows


class GatedDeltaProduct(GatedDeltaNet):
    """The gated delta rule with R writes per token: products of Householder-like steps."""

    operator = "gated_deltaproduct"
    config: GatedDeltaProductConfig

    def __init__(self, config: GatedDeltaProductConfig) -> None:
        super().__init__(config)
        hidden, taps, writes = config.hidden_size, config.conv_size, config.num_householder
        keys = writes * self.num_heads * self.head_dim
        values = writes * self.num_v_heads * self.v_head_dim
        self.num_householder = writes
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, values, bias=False)
        self.b_proj = nn.Linear(hidden, writes * self.num_v_heads, bias=False)
        self.k_conv = ShortConv(keys, taps, bias=False)
        self.v_conv = ShortConv(values, taps, bias=False)

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
        beta, log_decay = self.gates(*self.logits(x, rows.mask(x)))
        initial = None if state is None else state["recurrent"]
        final: Tensor | None
        if backend == "fla":
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
            o, final = kernel.chunk(q, k, v, initial, beta, log_decay)
        else:
            if initial is None:
                size = (len(x), self.num_v_heads, self.head_dim, self.v_head_dim)
                initial = x.new_zeros(size, dtype=torch.float32)
            run = recurrent_delta_product if backend == "reference" else chunk_delta_product
            o, final = run(*self.normalize(q, k), v, initial, beta, log_decay)
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
        b, a = self.logits(x, active)
        if backend == "fla":
            mirrors = self.config.allow_neg_eigval
            o = kernel.step_(
                memory, q, k, v, b, a, self.A_log, self.dt_bias, allow_neg_eigval=mirrors
            )
        else:
            o = delta_product_step(*self.normalize(q, k), v, memory, *self.gates(b, a))
        return self.finish(o, x)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "fla" else ""

    def split(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [...,N,K], keys [...,R,N,K] and values [...,R,G,V] of what the convolutions
        gave."""
        return (
            q.unflatten(-1, (self.num_heads, self.head_dim)),
            k.unflatten(-1, (self.num_householder, self.num_heads, self.head_dim)),
            v.unflatten(-1, (self.num_householder, self.num_v_heads, self.v_head_dim)),
        )

    def logits(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of write strengths [...,R,G] and decay [...,G] of x[...,H]; where a token is
        not `real`[...], so low that nothing is written or forgotten."""
        b, a = super().logits(x, real)
        return b.unflatten(-1, (self.num_householder, self.num_v_heads)), a

    def gates(self, *logits: Tensor) -> tuple[Tensor, Tensor]:
        """Write strengths [...,R,G], up to 2 where a write may mirror the state, and logarithm
        of the decay [...,G], in fp32, of their logits."""
        beta, log_decay = super().gates(*logits)
        return 2 * beta if self.config.allow_neg_eigval else beta, log_decay
