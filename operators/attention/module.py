"""Full attention: projections, rotary positions, key/value cache.

Legend: B rows, T tokens, H hidden size, N heads, G key/value heads, D head width, S cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from archsearch.operators.attention.config import AttentionConfig
from archsearch.operators.attention.reference import attend
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.common.rope import frequencies
from archsearch.operators.common.rope import rotate
from archsearch.operators.common.rope import tables
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows


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
        size = (batch, self.num_kv_heads, slots, self.head_dim)
        inverse = self.inverse_frequencies(max_len, torch.device(device))
        cos, sin = tables(inverse, torch.arange(max_len, device=device))
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
            inverse = self.inverse_frequencies(x.shape[1], x.device)
            cos, sin = tables(inverse, positions)
        else:
            # padding after a continued prompt may point past the tables
            positions = positions.clamp(max=len(state.shared["cos"]) - 1)
            cos, sin = state.shared["cos"][positions], state.shared["sin"][positions]
        q, k = rotate(q, cos[:, None], sin[:, None]), rotate(k, cos[:, None], sin[:, None])
        y = self.attend(q, k, v, rows, state)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`; writes key and value at `position`, then attends to the cache."""
        q, k, v = self.project(x[:, None])
        cos = state.shared["cos"][position][:, None, None]
        sin = state.shared["sin"][position][:, None, None]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        cache_k, cache_v = state["keys"], state["values"]
        slot = self.slot(position, cache_k.shape[2])
        row = torch.arange(len(x), device=x.device)
        keep = ~active[:, None, None]
        cache_k[row, :, slot] = torch.where(keep, cache_k[row, :, slot], k[:, :, 0])
        cache_v[row, :, slot] = torch.where(keep, cache_v[row, :, slot], v[:, :, 0])
        used = cache_k.shape[2]
        if x.device.type == "cpu":
            # nothing waits on a CPU: look at the filled part of the cache alone
            used = min(used, int(position.max()) + 1)
        seen = torch.arange(used, device=x.device) <= position[:, None]
        y = self.softmax(q, cache_k[:, :, :used], cache_v[:, :, :used], seen[:, None, None])
        return self.o_proj(y.transpose(1, 2).flatten(1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B,N,T,D], keys and values [B,G,T,D] of x[B,T,H], before the rotation."""
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, state: State | None) -> Tensor:
        """Causal attention of rotated q over k, v and what the state holds; fills the state."""
        if state is not None:
            self.write_cache(k, v, rows, state)
        if state is None or rows.starts is None:
            # padding lies on the right, where no real query looks
            return self.softmax(q, k, v, None)
        positions = rows.positions(k[:, 0])
        used = min(int(positions.max()) + 1, state["keys"].shape[2])
        seen = torch.arange(used, device=q.device) <= positions[:, :, None]
        keys, values = state["keys"][:, :, :used], state["values"][:, :, :used]
        return self.softmax(q, keys.to(q.dtype), values.to(q.dtype), seen[:, None])

    def write_cache(self, k: Tensor, v: Tensor, rows: Rows, state: State) -> None:
        """Put the real tokens' keys and values into the slots of their positions."""
        positions = rows.positions(k[:, 0]).expand(k.shape[0], -1)
        real = rows.mask(k[:, 0])
        slots = state["keys"].shape[2]
        kept = torch.ones_like(positions, dtype=torch.bool) if real is None else real
        # a window keeps its last tokens; in a full cache all of them fit
        ends = positions.masked_fill(~kept, -1).amax(1, keepdim=True)
        row, token = (kept & (positions > ends - slots)).nonzero(as_tuple=True)
        slot = self.slot(positions[row, token], slots)
        state["keys"][row, :, slot] = k[row, :, token].to(state["keys"].dtype)
        state["values"][row, :, slot] = v[row, :, token].to(state["values"].dtype)

    def softmax(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention by the chosen backend; `mask` None means causal over equal lengths."""
        if self.backend(q) == "reference":
            if mask is None:
                size = (q.shape[2], k.shape[2])
                mask = torch.ones(size, dtype=torch.bool, device=q.device).tril()
            return attend(q, k, v, mask)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )

    def cache_slots(self, max_len: int) -> int:
        """How many tokens the cache holds when rows may grow to `max_len`."""
        return max_len

    def slot(self, position: Tensor, slots: int) -> Tensor:
        """The cache slot of a token at `position`."""
        return position % slots

    def inverse_frequencies(self, capacity: int, device: torch.device) -> Tensor:
        """Rotary inverse frequencies [D/2] in fp32."""
        inverse = frequencies(self.rope, self.head_dim, self.max_position, capacity)
        return torch.tensor(inverse, dtype=torch.float32, device=device)
