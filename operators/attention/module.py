"""Full attention: projections, rotary positions, key/value cache.

Legend: B rows, T tokens, H hidden size, N heads, G key/value heads, D head width, S slots of
the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn

from archsearch.operators.attention import kernel
from archsearch.operators.attention import reference
from archsearch.operators.attention import sdpa
from archsearch.operators.attention.config import AttentionConfig
from archsearch.operators.backends import Request
from archsearch.operators.backends import choose
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.common.rope import inverse_frequencies
from archsearch.operators.common.rope import rotate
from archsearch.operators.common.rope import tables
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows

CAUSAL = {
    "flash_attn": kernel.attend_causal,
    "sdpa": sdpa.attend_causal,
    "reference": reference.attend_causal,
}
CACHED = {
    "flash_attn": kernel.attend_cache,
    "sdpa": sdpa.attend_cache,
    "reference": reference.attend_cache,
}
MASKED = {"sdpa": sdpa.attend, "reference": reference.attend}


class Attention(Mixer):
    """Causal softmax attention over everything before."""

    operator = "attention"
    READS = ("q_proj", "k_proj", "v_proj")
    WRITES = ("o_proj",)

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__(config)
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.rope, self.max_position = config.rope, config.max_position
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None

    def init_weights(self, generator: torch.Generator) -> None:
        """Linears as everywhere; the query/key norms begin at one."""
        super().init_weights(generator)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.reset()

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """A key/value cache of `max_len` tokens per row and the rotary tables for them."""
        slots = self.cache_slots(max_len)
        size = (batch, slots, self.num_kv_heads, self.head_dim)
        cos, sin = self.rotary(torch.arange(max_len, device=device), max_len)
        return State(
            {
                "keys": torch.zeros(size, dtype=dtype, device=device),
                "values": torch.zeros(size, dtype=dtype, device=device),
            },
            {"cos": cos, "sin": sin},
        )

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`; attends to the cache as well when the rows continue a prompt."""
        q, k, v = self.project(x)
        positions = rows.positions(x)
        if state is None:
            cos, sin = self.rotary(positions, x.shape[1])
        else:
            # padding after a continued prompt may point past the tables
            positions = positions.clamp(max=len(state.shared["cos"]) - 1)
            cos, sin = state.shared["cos"][positions], state.shared["sin"][positions]
        q, k = (rotate(t, cos[:, :, None], sin[:, :, None]) for t in (q, k))
        if state is not None and rows.starts is not None:
            y = self.extend(q, k, v, rows, state)
        else:
            if state is not None:
                self.write_cache(k, v, rows, state)
            # padding lies on the right, where no real query looks
            y = self.causal(q, k, v)
        return self.o_proj(y.flatten(2))

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`; writes key and value at `position`, then attends to the cache."""
        q, k, v = self.project(x)
        cos, sin = (state.shared[name][position][:, None] for name in ("cos", "sin"))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys, values = state["keys"], state["values"]
        slots = keys.shape[1]
        slot = position % slots
        row = torch.arange(len(x), device=x.device)
        keep = ~active[:, None, None]
        keys[row, slot] = torch.where(keep, keys[row, slot], k)
        values[row, slot] = torch.where(keep, values[row, slot], v)
        if x.device.type == "cpu":
            # nothing waits on a CPU: look at the filled part of the cache alone
            slots = min(slots, int(position.max()) + 1)
        # a ring that is full is seen as a whole: softmax does not mind the order
        count = (position + 1).clamp(max=slots)
        run = CACHED[self.backend(q, "decode")]
        return self.o_proj(run(q, keys[:, :slots], values[:, :slots], count).flatten(1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [...,N,D], keys and values [...,G,D] of x[...,H], before the rotation."""
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            # under autocast the norms' fp32 weights would widen what the kernels compute in
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return q, k, v

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotated q[B,T,N,D] over k and v[B,T,G,D] of the same tokens."""
        return CAUSAL[self.backend(q)](q, k, v)

    def extend(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, state: State) -> Tensor:
        """Rotated q[B,T,N,D] over what the state holds and k, v[B,T,G,D]; extends the state."""
        assert rows.starts is not None
        self.write_cache(k, v, rows, state)
        keys, values = state["keys"], state["values"]
        if rows.lengths is None and self.backend(q) == "flash_attn":
            return kernel.attend_tail(q, keys, values, rows.starts + q.shape[1])
        positions = rows.positions(k)
        used = min(int(positions.max()) + 1, keys.shape[1])
        seen = torch.arange(used, device=q.device) <= positions[:, :, None]
        return self.masked(q, keys[:, :used], values[:, :used], seen)

    def masked(self, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """q[B,T,N,D] over those of keys and values[B,S,G,D] that are `seen`[B,T,S]."""
        # a part of its own: no kernel package takes a mask
        request = Request("masked_attention", "prefill", q.device.type, q.dtype)
        run = MASKED[choose(tuple(MASKED), request)]
        return run(q, keys.to(q.dtype), values.to(q.dtype), seen)

    def write_cache(self, k: Tensor, v: Tensor, rows: Rows, state: State) -> None:
        """Put the real tokens' k and v[B,T,G,D] into the slots of their positions; a cache that
        wraps around keeps the last ones."""
        for cache, new in ((state["keys"], k), (state["values"], v)):
            if rows.lengths is None and rows.starts is None:
                _fill(cache, new)
            else:
                _scatter(cache, new, rows)

    def cache_slots(self, max_len: int) -> int:
        """How many tokens the cache holds when rows may grow to `max_len`."""
        return max_len

    def rotary(self, positions: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Rotary cos and sin [...,D/2] at `positions`[...]."""
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
        return kernel.refuses(request, self.head_dim) if backend == "flash_attn" else ""


def _fill(cache: Tensor, new: Tensor) -> None:
    """Write new[B,T,G,D], which begins at position 0, into cache[B,S,G,D]: slices alone."""
    slots = cache.shape[1]
    first = max(new.shape[1] - slots, 0)
    kept, turn = new[:, first:], first % slots
    straight = slots - turn
    cache[:, turn : turn + kept.shape[1]] = kept[:, :straight]
    cache[:, :turn] = kept[:, straight:]


def _scatter(cache: Tensor, new: Tensor, rows: Rows) -> None:
    """Write the real tokens of new[B,T,G,D] into cache[B,S,G,D] at each row's own positions."""
    batch, length = new.shape[:2]
    slots = cache.shape[1]
    lengths = torch.full((batch,), length, device=new.device)
    lengths = lengths if rows.lengths is None else rows.lengths
    starts = torch.zeros_like(lengths) if rows.starts is None else rows.starts
    # so many tokens before a row's end have slots of their own; some may precede its begin
    back = torch.arange(min(length, slots), device=new.device)
    token = lengths[:, None] - 1 - back
    slot = (starts[:, None] + token) % slots
    row = torch.arange(batch, device=new.device)[:, None]
    values = new[row, token.clamp(min=0)].to(cache.dtype)
    real = (token >= 0)[:, :, None, None]
    cache[row, slot] = torch.where(real, values, cache[row, slot])
