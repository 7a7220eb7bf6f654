"""Gated linear attention: projections, low-rank decay gate, matrix state, output gate.

Legend: B rows, T tokens, H hidden size, N heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.gla import kernel
from archsearch.operators.gla.chunked import chunk_gla
from archsearch.operators.gla.config import GLAConfig
from archsearch.operators.gla.reference import gla_step
from archsearch.operators.gla.reference import recurrent_gla
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.layer import state_dtype
from archsearch.operators.sequence import Rows

RUNS = {"fla": kernel.chunk, "torch": chunk_gla, "reference": recurrent_gla}


class GLA(Mixer):
    """Linear attention whose state decays by a data-dependent gate per key channel."""

    operator = "gla"
    READS = ("q_proj", "k_proj", "v_proj", "g_proj", "decay_down", "decay_up")
    WRITES = ("o_proj",)
    config: GLAConfig

    def __init__(self, config: GLAConfig) -> None:
        super().__init__(config)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.k_head_dim = config.k_head_dim
        self.gate_normalizer, self.state_dtype = config.gate_normalizer, config.state_dtype
        hidden = config.hidden_size
        keys, values = self.num_heads * self.k_head_dim, self.num_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, keys, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, values, bias=False)
        self.g_proj = nn.Linear(hidden, values, bias=False)
        self.decay_down = nn.Linear(hidden, config.gate_rank, bias=False)
        self.decay_up = nn.Linear(config.gate_rank, keys, bias=True)
        self.norm = RMSNorm(self.head_dim, config.norm_eps)
        self.o_proj = nn.Linear(values, hidden, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Linears as everywhere; the norm begins at one."""
        super().init_weights(generator)
        self.norm.reset()

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """One matrix per head, as long as any text."""
        size = (batch, self.num_heads, self.k_head_dim, self.head_dim)
        kind = state_dtype(self.state_dtype, dtype)
        return State({"recurrent": torch.zeros(size, dtype=kind, device=device)})

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        q, k, v, log_decay = self.project(x)
        mask = rows.mask(x)
        if mask is not None:
            # keys are zero at padding already: nothing is added, and now nothing decays
            log_decay = log_decay.masked_fill(~mask[:, :, None, None], 0)
        # not x: under autocast the projections have the dtype that the kernels compute in
        run = RUNS[self.backend(q)]
        o, memory = run(q, k, v, log_decay, None if state is None else state["recurrent"])
        if state is not None:
            assert memory is not None, "a form that was given a state returned none"
            state.update("recurrent", memory)
        return self.gate_output(o, x)

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        q, k, v, log_decay = self.project(x)
        before = state["recurrent"]
        if self.backend(q, "decode") == "fla":
            k, log_decay = (t.masked_fill(~active[:, None, None], 0) for t in (k, log_decay))
            o = kernel.step_(before, q, k, v, log_decay)
        else:
            q, k, v = (t.float() for t in (q, k, v))
            o, memory = gla_step(q, k, v, log_decay, before.float())
            state.update("recurrent", memory, active)
        return self.gate_output(o.to(x.dtype), x)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys [...,N,K], values [...,N,V] and fp32 log-decays [...,N,K] of x[...,H]."""
        decay = F.logsigmoid(self.decay_up(self.decay_down(x)).float()) / self.gate_normalizer
        q, k, log_decay = (
            t.unflatten(-1, (self.num_heads, -1)) for t in (self.q_proj(x), self.k_proj(x), decay)
        )
        return q, k, self.v_proj(x).unflatten(-1, (self.num_heads, -1)), log_decay

    def gate_output(self, o: Tensor, x: Tensor) -> Tensor:
        """Normalise o[...,N,V] per head, gate it by x[...,H] and project it back."""
        return self.o_proj(self.norm(o).flatten(-2) * F.silu(self.g_proj(x)))

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "fla" else ""
