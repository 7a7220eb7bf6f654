"""RWKV-7 time mixing: token shift, low-rank gates, matrix state, normalised and gated output.

Legend: B rows, T tokens, H hidden size, N heads, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.layer import state_dtype
from archsearch.operators.rwkv7 import kernel
from archsearch.operators.rwkv7.chunked import chunk_rwkv7
from archsearch.operators.rwkv7.config import RWKV7Config
from archsearch.operators.rwkv7.reference import recurrent_rwkv7
from archsearch.operators.rwkv7.reference import rwkv7_step
from archsearch.operators.sequence import Rows

# exp(-1/2): the strongest decay of a token is exp(-exp(-1/2)) = 0.545
DECAY_SCALE = 0.6065306597126334
MIXED = ("r", "w", "k", "v", "a", "g")
RUNS = {"fla": kernel.chunk, "torch": chunk_rwkv7, "reference": recurrent_rwkv7}


class Parts(NamedTuple):
    """What one token brings: all [...,N,D], the gate [...,H]."""

    r: Tensor
    w: Tensor
    k: Tensor
    v: Tensor
    kk: Tensor
    rate: Tensor
    gate: Tensor


class RWKV7(Mixer):
    """Time mixing of an RWKV-7 layer without the cross-layer value residual."""

    operator = "rwkv7"
    READS = (
        "r_proj",
        "k_proj",
        "v_proj",
        *(f"{name}_{end}" for name in ("decay", "rate", "gate") for end in ("down", "up")),
    )
    WRITES = ("o_proj",)
    config: RWKV7Config

    def __init__(self, config: RWKV7Config) -> None:
        super().__init__(config)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.state_dtype = config.state_dtype
        hidden = config.hidden_size
        self.mix_weights = nn.Parameter(torch.empty(len(MIXED), hidden))
        self.r_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden, bias=False)
        self.decay_down = nn.Linear(hidden, config.decay_rank, bias=False)
        self.decay_up = nn.Linear(config.decay_rank, hidden, bias=True)
        self.rate_down = nn.Linear(hidden, config.rate_rank, bias=False)
        self.rate_up = nn.Linear(config.rate_rank, hidden, bias=True)
        self.gate_down = nn.Linear(hidden, config.gate_rank, bias=False)
        self.gate_up = nn.Linear(config.gate_rank, hidden, bias=False)
        self.k_k = nn.Parameter(torch.empty(hidden))
        self.k_a = nn.Parameter(torch.empty(hidden))
        self.r_k = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        self.norm = nn.GroupNorm(self.num_heads, hidden, eps=self.head_dim * config.norm_eps)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Linears as everywhere; mixes, biases and vectors as published for a first layer."""
        super().init_weights(generator)
        hidden = self.config.hidden_size
        place = torch.arange(hidden)
        linear = place / max(1, hidden - 1)
        zigzag = 2 * (place % self.head_dim) / max(1, self.head_dim - 1) - 1
        zigzag = zigzag * zigzag.abs()
        powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])
        with torch.no_grad():
            self.mix_weights.copy_(1 - (place / hidden) ** powers[:, None])
            self.decay_up.bias.copy_(-5.5 + 6 * linear + 2.5 * zigzag)
            self.rate_up.bias.copy_(-0.19 + 0.3 * zigzag + 0.4 * (linear - 0.5))
            self.k_k.copy_(0.71 - 0.1 * (linear - 0.5))
        nn.init.constant_(self.k_a, 1.02)
        nn.init.constant_(self.r_k, -0.04)
        self.norm.reset_parameters()

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """One matrix per head and the last input, as long as any text."""
        size = (batch, self.num_heads, self.head_dim, self.head_dim)
        kind = state_dtype(self.state_dtype, dtype)
        return State(
            {
                "recurrent": torch.zeros(size, dtype=kind, device=device),
                "shift": torch.zeros(batch, self.config.hidden_size, dtype=dtype, device=device),
            }
        )

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`."""
        first = x.new_zeros(len(x), x.shape[2]) if state is None else state["shift"].to(x.dtype)
        parts = self.project(x, torch.cat([first[:, None], x[:, :-1]], dim=1))
        r, w, k, v, kk, rate, _ = parts
        mask = rows.mask(x)
        if mask is not None:
            # the shift brings the last token into the padding: nothing may change there
            padding = ~mask[:, :, None, None]
            w, k, kk = (t.masked_fill(padding, 0) for t in (w, k, kk))
        # not x: under autocast the projections have the dtype that the kernels compute in
        run = RUNS[self.backend(r)]
        memory = None if state is None else state["recurrent"]
        o, memory = run(r, w, k, v, a=-kk, b=kk * rate, initial_state=memory)
        if state is not None:
            assert memory is not None, "a form that was given a state returned none"
            state.update("recurrent", memory)
            state.update("shift", _last(x, rows))
        return self.finish(o, parts)

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`."""
        parts = self.project(x, state["shift"].to(x.dtype))
        before = state["recurrent"]
        if self.backend(parts.r, "decode") == "fla":
            r, w, k, v, kk, rate, _ = parts
            w, k, kk = (t.masked_fill(~active[:, None, None], 0) for t in (w, k, kk))
            o = kernel.step_(before, r, w, k, v, kk=kk, rate=rate)
        else:
            r, w, k, v, kk, rate, _ = (t.float() for t in parts)
            o, memory = rwkv7_step(r, w, k, v, a=-kk, b=kk * rate, state=before.float())
            state.update("recurrent", memory, active)
        state.update("shift", x, active)
        return self.finish(o.to(x.dtype), parts)

    def project(self, x: Tensor, previous: Tensor) -> Parts:
        """The parts of x[...,H] whose preceding inputs are previous[...,H]."""
        difference = previous - x
        xr, xw, xk, xv, xa, xg = (
            torch.addcmul(x, difference, weight) for weight in self.mix_weights
        )
        r, k, v = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)
        w = -DECAY_SCALE * self.decay_up(self.decay_down(xw).tanh()).float().sigmoid()
        rate = self.rate_up(self.rate_down(xa)).sigmoid()
        gate = self.gate_up(self.gate_down(xg).sigmoid())
        kk = F.normalize((k * self.k_k).unflatten(-1, (self.num_heads, -1)), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)
        r, w, k, v, rate = (t.unflatten(-1, (self.num_heads, -1)) for t in (r, w, k, v, rate))
        return Parts(r, w, k, v, kk, rate, gate)

    def finish(self, o: Tensor, parts: Parts) -> Tensor:
        """Normalise o[...,N,D] per head, add the present token's bonus, gate and project."""
        normed = self.norm(o.reshape(-1, self.config.hidden_size)).view(o.shape)
        bonus = (parts.r * parts.k * self.r_k).sum(-1, keepdim=True)
        return self.o_proj(torch.addcmul(normed, bonus, parts.v).flatten(-2) * parts.gate)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        return kernel.refuses(request, self.config) if backend == "fla" else ""


def _last(x: Tensor, rows: Rows) -> Tensor:
    """The last real token of each row of x[B,T,H]."""
    if rows.lengths is None:
        return x[:, -1]
    return x[torch.arange(len(x), device=x.device), rows.lengths - 1]
