"""DeltaNet: projections, short convolutions, the delta rule.

Legend: B rows, T tokens, H hidden size, N key heads, G value heads, K key width, V value width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.common.conv import ShortConv
from archsearch.operators.common.delta_rule import chunked_delta_rule
from archsearch.operators.common.delta_rule import delta_rule_step
from archsearch.operators.common.delta_rule import l2_normalize
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.deltanet.config import DeltaNetConfig
from archsearch.operators.deltanet.reference import delta_rule
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.layer import state_dtype
from archsearch.operators.sequence import Rows


class DeltaNet(Mixer):
    """Linear attention that writes what its state does not predict yet."""

    operator = "deltanet"
    recurrence: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(delta_rule)
    READS: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "b_proj")
    WRITES = ("o_proj",)

    def __init__(self, config: DeltaNetConfig, num_v_heads: int | None = None) -> None:
        super().__init__(config)
        self.num_heads = config.num_heads
        self.num_v_heads = num_v_heads or config.num_heads
        self.head_dim, self.v_head_dim = config.head_dim, config.v_head_dim
        self.state_dtype = config.state_dtype
        hidden, taps = config.hidden_size, config.conv_size
        keys, values = self.num_heads * self.head_dim, self.num_v_heads * self.v_head_dim
        self.q_proj = nn.Linear(hidden, keys, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, values, bias=False)
        self.b_proj = nn.Linear(hidden, self.num_v_heads, bias=False)
        self.q_conv = ShortConv(keys, taps, bias=False)
        self.k_conv = ShortConv(keys, taps, bias=False)
        self.v_conv = ShortConv(values, taps, bias=False)
        self.o_norm = RMSNorm(self.v_head_dim, config.norm_eps)
        self.o_proj = nn.Linear(values, hidden, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Linears as everywhere, convolutions as torch does, the norm at one."""
        super().init_weights(generator)
        for conv in (self.q_conv, self.k_conv, self.v_conv):
            conv.init_weights(generator)
        self.o_norm.reset()

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """The matrix state of every value head and the last inputs of the convolutions."""
        size = (batch, self.num_v_heads, self.head_dim, self.v_head_dim)
        kept = state_dtype(self.state_dtype, dtype)
        return State(
            {
                "recurrent": torch.zeros(size, dtype=kept, device=device),
                "q_conv": self.q_conv.new_state(batch, dtype, device),
                "k_conv": self.k_conv.new_state(batch, dtype, device),
                "v_conv": self.v_conv.new_state(batch, dtype, device),
            }
        )

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        q, k, v = self.heads(
            self.q_conv(self.q_proj(x), rows, state, "q_conv"),
            self.k_conv(self.k_proj(x), rows, state, "k_conv"),
            self.v_conv(self.v_proj(x), rows, state, "v_conv"),
        )
        if state is None:
            initial = q.new_zeros(len(x), self.num_v_heads, self.head_dim, self.v_head_dim)
        else:
            initial = state["recurrent"]
        rule = self.recurrence if self.backend(x) == "reference" else chunked_delta_rule
        o, final = rule(q, k, v, initial, *self.gates(x, rows.mask(x)))
        if state is not None:
            state.update("recurrent", final)
        return self.finish(o, x)

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        q, k, v = self.heads(
            self.q_conv.step(self.q_proj(x), state, active, "q_conv"),
            self.k_conv.step(self.k_proj(x), state, active, "k_conv"),
            self.v_conv.step(self.v_proj(x), state, active, "v_conv"),
        )
        o = delta_rule_step(q, k, v, state["recurrent"], *self.gates(x, active))
        return self.finish(o, x)

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Activate and split what the convolutions gave: scaled unit queries and unit keys
        [...,G,K] in fp32, values [...,G,V]."""
        q = l2_normalize(F.silu(q).unflatten(-1, (self.num_heads, self.head_dim)))
        k = l2_normalize(F.silu(k).unflatten(-1, (self.num_heads, self.head_dim)))
        v = F.silu(v).unflatten(-1, (self.num_v_heads, self.v_head_dim))
        groups = self.num_v_heads // self.num_heads
        if groups > 1:
            q, k = q.repeat_interleave(groups, dim=-2), k.repeat_interleave(groups, dim=-2)
        return q * self.head_dim**-0.5, k, v

    def gates(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, ...]:
        """The write strength [...,G] of x[...,H] in fp32; 0 where a token is not `real`[...]."""
        return (mask(self.b_proj(x).float().sigmoid(), real),)

    def finish(self, o: Tensor, x: Tensor) -> Tensor:
        """Bring the heads' outputs o[...,G,V] for x[...,H] back to the hidden size."""
        return self.o_proj(self.o_norm(o.to(x.dtype)).flatten(-2))


def mask(gate: Tensor, real: Tensor | None) -> Tensor:
    """gate[...,G], zero where a token is not `real`[...]."""
    return gate if real is None else gate.masked_fill(~real[..., None], 0)
