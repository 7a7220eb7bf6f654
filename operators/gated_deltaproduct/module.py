"""Gated DeltaProduct: Gated DeltaNet's module with several keys, values and write strengths
per token.

Legend: B rows, T tokens, H hidden size, R writes per token, N key heads, G value heads,
K key width, V value width.
"""

from __future__ import annotations

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


class GatedDeltaProduct(GatedDeltaNet):
    """The gated delta rule with R writes per token: products of Householder-like steps."""

    operator = "gated_deltaproduct"
    recurrence = staticmethod(recurrent_delta_product)
    chunked = staticmethod(chunk_delta_product)
    stepped = staticmethod(delta_product_step)
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
        return kernel.step_(
            state,
            q,
            k,
            v,
            write,
            decay,
            self.A_log,
            self.dt_bias,
            allow_neg_eigval=self.config.allow_neg_eigval,
        )

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
