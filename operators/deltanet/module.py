"""DeltaNet: projections, short convolutions, the delta rule.

Legend: B rows, T tokens, H hidden size, N key heads, G value heads, K key width, V value width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from archsearch.operators.backends import Request
from archsearch.operators.common.conv import ShortConv
from archsearch.operators.common.delta_rule import chunked_delta_rule
from archsearch.operators.common.delta_rule import delta_rule_step
from archsearch.operators.common.delta_rule import l2_normalize
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.deltanet import kernel
from archsearch.operators.deltanet.config import DeltaNetConfig
from archsearch.operators.deltanet.reference import delta_rule
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.layer import state_dtype
from archsearch.operators.sequence import Rows

# a logit whose sigmoid and softplus are 0, in every dtype
SHUT = -1e4


class DeltaNet(Mixer):
    """Linear attention that writes what its state does not predict yet."""

    operator = "deltanet"
    # the forms in PyTorch, which want unit queries and keys, and gates
    recurrence: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(delta_rule)
    chunked: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(chunked_delta_rule)
    stepped: ClassVar[Callable[..., Tensor]] = staticmethod(delta_rule_step)
    READS: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "b_proj")
    WRITES = ("o_proj",)
    config: DeltaNetConfig

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
            o, final = self.fused(q.to(dtype), k.to(dtype), v.to(dtype), initial, *logits)
        else:
            if initial is None:
                size = (len(x), self.num_v_heads, self.head_dim, self.v_head_dim)
                initial = x.new_zeros(size, dtype=torch.float32)
            rule = self.recurrence if backend == "reference" else self.chunked
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
            o = self.fused_step(memory, q, k, v, *logits)
        else:
            o = self.stepped(*self.normalize(q, k), v, memory, *self.gates(*logits))
        return self.finish(o, x)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "fla" else ""

    def fused(
        self, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, *logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs and state after the last token by the kernels, of what `split` and `logits`
        gave."""
        return kernel.chunk(q, k, v, state, *self.gates(*logits))

    def fused_step(
        self, state: Tensor, q: Tensor, k: Tensor, v: Tensor, *logits: Tensor
    ) -> Tensor:
        """The output of one token by the kernel, which moves the state on in place."""
        return kernel.step_(state, q, k, v, *logits)

    def split(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [...,N,K] and values [...,G,V] of what the convolutions gave."""
        return (
            q.unflatten(-1, (self.num_heads, self.head_dim)),
            k.unflatten(-1, (self.num_heads, self.head_dim)),
            v.unflatten(-1, (self.num_v_heads, self.v_head_dim)),
        )

    def normalize(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled unit queries and unit keys [...,G,K] in fp32 of q, k[...,N,K]."""
        q, k = l2_normalize(q), l2_normalize(k)
        groups = self.num_v_heads // self.num_heads
        if groups > 1:
            q, k = q.repeat_interleave(groups, dim=-2), k.repeat_interleave(groups, dim=-2)
        return q * self.head_dim**-0.5, k

    def logits(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, ...]:
        """The logit [...,G] of the write strength of x[...,H]; where a token is not `real`[...],
        so low that nothing is written."""
        return (shut(self.b_proj(x), real),)

    def gates(self, *logits: Tensor) -> tuple[Tensor, ...]:
        """The write strength [...,G] in fp32 of its logit."""
        return (logits[0].float().sigmoid(),)

    def finish(self, o: Tensor, x: Tensor) -> Tensor:
        """Bring the heads' outputs o[...,G,V] for x[...,H] back to the hidden size."""
        return self.o_proj(self.o_norm(o.to(x.dtype)).flatten(-2))


def shut(logit: Tensor, real: Tensor | None) -> Tensor:
    """logit[...,G], very low where a token is not `real`[...]."""
    return logit if real is None else logit.masked_fill(~real[..., None], SHUT)
