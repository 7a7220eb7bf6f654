"""Multi-head latent attention: low-rank projections, rotary positions, a cache of latents.

Legend: B rows, T tokens, H hidden size, N heads, D width without rotation, P width with
rotation, R latent width, V value width, S slots of the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn

from archsearch.operators.backends import Request
from archsearch.operators.backends import choose
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.common.rope import inverse_frequencies
from archsearch.operators.common.rope import rotate
from archsearch.operators.common.rope import tables
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.mla import absorbed
from archsearch.operators.mla import expanded
from archsearch.operators.mla import kernel
from archsearch.operators.mla import reference
from archsearch.operators.mla.config import MLAConfig
from archsearch.operators.sequence import Rows

CAUSAL = {
    "flash_attn": kernel.attend_causal,
    "sdpa": expanded.attend_causal,
    "reference": reference.attend_causal,
}
CACHED = {"torch": absorbed.attend_cache, "reference": reference.attend_cache}


class MultiHeadLatentAttention(Mixer):
    """Causal softmax attention whose cache is one latent and one rotated key per token.

    The parameters carry the names of the released models.
    """

    operator = "mla"
    READS = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
    WRITES = ("o_proj",)
    config: MLAConfig

    def __init__(self, config: MLAConfig) -> None:
        super().__init__(config)
        self.num_heads, self.qk_head_dim = config.num_heads, config.qk_head_dim
        self.head_dim, self.rope_head_dim = config.head_dim, config.rope_head_dim
        self.kv_lora_rank = config.kv_lora_rank
        hidden, rank, q_rank = config.hidden_size, config.kv_lora_rank, config.q_lora_rank
        queries = self.num_heads * self.qk_head_dim
        if q_rank is None:
            self.q_proj = nn.Linear(hidden, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, q_rank, bias=False)
            self.q_a_layernorm = RMSNorm(q_rank, config.norm_eps)
            self.q_b_proj = nn.Linear(q_rank, queries, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, config.cache_width, bias=False)
        self.kv_a_layernorm = RMSNorm(rank, config.norm_eps)
        expansion = self.num_heads * (self.head_dim + config.v_head_dim)
        self.kv_b_proj = nn.Linear(rank, expansion, bias=False)
        self.o_proj = nn.Linear(self.num_heads * config.v_head_dim, hidden, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Linears as everywhere; the norms begin at one."""
        super().init_weights(generator)
        for module in self.children():
            if isinstance(module, RMSNorm):
                module.reset()

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | str
    ) -> State:
        """A cache of `max_len` latents and rotated keys per row, and the rotary tables."""
        size = (batch, max_len, self.config.cache_width)
        cos, sin = self.rotary(torch.arange(max_len, device=device), max_len)
        cache = torch.zeros(size, dtype=dtype, device=device)
        return State({"cache": cache}, {"cos": cos, "sin": sin})

    def mix(self, x: Tensor, rows: Rows, state: State | None) -> Tensor:
        """See `Mixer.mix`; the expanded form."""
        positions = rows.positions(x)
        if state is None:
            cos, sin = self.rotary(positions, x.shape[1])
        else:
            # padding after a continued prompt may point past the tables
            positions = positions.clamp(max=len(state.shared["cos"]) - 1)
            cos, sin = state.shared["cos"][positions], state.shared["sin"][positions]
        q, new = self.project(x, cos, sin)
        if state is not None:
            write(state["cache"], new, rows)
        if state is not None and rows.starts is not None:
            y = self.extend(q, state["cache"], rows)
        else:
            # padding lies on the right, where no real query looks
            y = CAUSAL[self.backend(q)](q, new, self.expansion())
        return self.o_proj(y.flatten(2))

    def mix_step(self, x: Tensor, state: State, position: Tensor, active: Tensor) -> Tensor:
        """See `Mixer.mix_step`; the absorbed form."""
        cos, sin = state.shared["cos"][position], state.shared["sin"][position]
        q, new = self.project(x, cos, sin)
        cache = state["cache"]
        row = torch.arange(len(x), device=x.device)
        cache[row, position] = torch.where(active[:, None], new, cache[row, position])
        if x.device.type == "cpu":
            # nothing waits on a CPU: look at the filled part of the cache alone
            cache = cache[:, : int(position.max()) + 1]
        run = CACHED[self.backend(q, "decode")]
        return self.o_proj(run(q, cache, self.expansion(), position + 1).flatten(1))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [...,N,D+P] and what the cache keeps, [...,R+P], of x[...,H], rotated by
        cos and sin[...,P/2]."""
        if self.config.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        split = [self.head_dim, self.rope_head_dim]
        plain, turned = q.unflatten(-1, (self.num_heads, -1)).split(split, dim=-1)
        q = torch.cat([plain, rotate(turned, cos[..., None, :], sin[..., None, :])], dim=-1)
        split = [self.kv_lora_rank, self.rope_head_dim]
        latent, key = self.kv_a_proj_with_mqa(x).split(split, dim=-1)
        # under autocast the norm's fp32 weight would widen it
        latent = self.kv_a_layernorm(latent).to(key.dtype)
        return q, torch.cat([latent, rotate(key, cos, sin)], dim=-1)

    def extend(self, q: Tensor, cache: Tensor, rows: Rows) -> Tensor:
        """Rotated q[B,T,N,D+P] over a cache[B,S,R+P] that already holds its tokens."""
        positions = rows.positions(q)
        used = min(int(positions.max()) + 1, cache.shape[1])
        seen = torch.arange(used, device=q.device) <= positions[:, :, None]
        run = reference.attend
        if self.backend(q) != "reference":
            # a part of its own: the layer's backend may be one that takes no mask
            choose(("sdpa",), Request("mla_continued", "prefill", q.device.type, q.dtype))
            run = expanded.attend
        return run(q, cache[:, :used].to(q.dtype), self.expansion(), seen)

    def expansion(self) -> Tensor:
        """The matrices [N,D+V,R] that make a head's keys and values of a latent."""
        return self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))

    def rotary(self, positions: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Rotary cos and sin [...,P/2] at `positions`[...]."""
        inverse = inverse_frequencies(
            self.config.rope,
            self.rope_head_dim,
            self.config.max_position,
            capacity=capacity,
            device=positions.device,
        )
        return tables(inverse, positions)

    def refuses(self, backend: str, request: Request) -> str:
        """See `Mixer.refuses`."""
        if backend == "reference":
            return ""
        decoding = request.phase == "decode"
        if backend == "torch":
            return "" if decoding else "it is the form of one query per row"
        if decoding:
            return "decoding attends to the latents, by plain matrix products"
        return kernel.refuses(request, self.config) if backend == "flash_attn" else ""


def write(cache: Tensor, new: Tensor, rows: Rows) -> None:
    """Put the real tokens of new[B,T,R+P] into cache[B,S,R+P] at their positions."""
    length = new.shape[1]
    if rows.lengths is None and rows.starts is None:
        cache[:, :length] = new
        return
    token = torch.arange(cache.shape[1], device=new.device)[None]
    if rows.starts is not None:
        token = token - rows.starts[:, None]
    ends = length if rows.lengths is None else rows.lengths[:, None]
    real = ((token >= 0) & (token < ends))[..., None]
    index = token.clamp(0, length - 1)[..., None].expand(len(new), -1, new.shape[2])
    cache.copy_(torch.where(real, new.gather(1, index).to(cache.dtype), cache))
