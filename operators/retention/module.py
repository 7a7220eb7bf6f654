"""Retention: projections, rotary positions, matrix state, output gate.

Legend: B rows, T tokens, H hidden size, N heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.common.rope import inverse_frequencies
from archsearch.operators.common.rope import rotate
from archsearch.operators.common.rope import tables
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.layer import state_dtype
from archsearch.operators.retention import kernel
from archsearch.operators.retention.chunked import chunk_retention
from archsearch.operators.retention.config import RetentionConfig
from archsearch.operators.retention.reference import log_decays
from archsearch.operators.retention.reference import recurrent_retention
from archsearch.operators.retention.reference import retention_step
from archsearch.operators.sequence import Rows

RUNS = {"fla": kernel.chunk, "torch": chunk_retention, "reference": recurrent_retention}


class Retention(Mixer):
    """Linear attention whose state decays at a fixed rate per head."""

    operator = "retention"
    READS = ("q_proj", "k_proj", "v_proj", "g_proj")
    WRITES = ("o_proj",)
    config: RetentionConfig

    def __init__(self, config: RetentionConfig) -> None:
        super().__init__(config)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.v_head_dim, self.state_dtype = config.v_head_dim, config.state_dtype
        self.rope, self.max_position = config.rope, config.max_position
        hidden = config.hidden_size
        keys, values = self.num_heads * self.head_dim, self.num_heads * self.v_head_dim
        self.q_proj = nn.Linear(hidden, keys, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, values, bias=False)
        self.g_proj = nn.Linear(hidden, values, bias=False)
        self.norm = RMSNorm(self.v_head_dim, config.norm_eps)
        self.o_proj = nn.Linear(values, hidden, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Linears as everywhere; the norm begins at one."""
        super().init_weights(generator)
        self.norm.reset()

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """One matrix per head, and the rotary tables for `max_len` tokens."""
        size = (batch, self.num_heads, self.head_dim, self.v_head_dim)
        kind = state_dtype(self.state_dtype, dtype)
        cos, sin = self.tables(torch.arange(max_len, device=device), max_len)
        return State(
            {"recurrent": torch.zeros(size, dtype=kind, device=device)},
            {"cos": cos, "sin": sin, "log_decay": log_decays(self.num_heads, device)},
        )

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        q, k, v = self.project(x)
        positions = rows.positions(x)
        if state is None:
            cos, sin = self.tables(positions, x.shape[1])
        else:
            # padding after a continued prompt may point past the tables
            positions = positions.clamp(max=len(state.shared["cos"]) - 1)
            cos, sin = state.shared["cos"][positions], state.shared["sin"][positions]
        q, k = (
            rotate(q, cos[:, :, None], sin[:, :, None]),
            rotate(k, cos[:, :, None], sin[:, :, None]),
        )
        # not x: under autocast the projections have the dtype that the kernels compute in
        backend = self.backend(q)
        # without a state nobody sees what the padding at the end decays
        mask = None if state is None else rows.mask(x)
        log_decay = self.decay_of(x, mask, by_head=backend == "fla")
        run = RUNS[backend]
        o, memory = run(q, k, v, log_decay, None if state is None else state["recurrent"])
        if state is not None:
            assert memory is not None, "a form that was given a state returned none"
            state.update("recurrent", memory)
        return self.gate_output(o, x)

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        q, k, v = self.project(x)
        cos = state.shared["cos"][position][:, None]
        sin = state.shared["sin"][position][:, None]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        log_decay, before = state.shared["log_decay"], state["recurrent"]
        if self.backend(q, "decode") == "fla":
            k = k.masked_fill(~active[:, None, None], 0)
            o = kernel.step_(before, q, k, v, log_decay * active[:, None])
        else:
            q, k, v = (t.float() for t in (q, k, v))
            o, memory = retention_step(q, k, v, log_decay[None], before.float())
            state.update("recurrent", memory, active)
        return self.gate_output(o.to(x.dtype), x)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [...,N,K] before the rotation, values [...,N,V] of x[...,H]."""
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def decay_of(self, x: Tensor, mask: Tensor | None, *, by_head: bool) -> Tensor:
        """Log-decays [1 or B,T,N] of x[B,T,H], zero where `mask`[B,T] is not true; [N] where one
        per head says it all."""
        decays = log_decays(self.num_heads, x.device)
        if mask is None:
            return decays if by_head else decays.expand(1, x.shape[1], -1)
        # keys are zero at padding already: nothing is added, and now nothing decays
        return decays * mask[:, :, None]

    def gate_output(self, o: Tensor, x: Tensor) -> Tensor:
        """Normalise o[...,N,V] per head, gate it by x[...,H] and project it back."""
        return self.o_proj(self.norm(o).flatten(-2) * F.silu(self.g_proj(x)))

    def tables(self, positions: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Rotary cos and sin [...,K/2] at `positions`[...]."""
        inverse = inverse_frequencies(
            self.rope,
            self.head_dim,
            self.max_position,
            capacity=capacity,
            device=positions.device,
        )
        return tables(inverse, positions)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "fla" else ""
