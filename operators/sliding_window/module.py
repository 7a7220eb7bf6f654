"""Sliding-window attention: full attention's module with a cache that wraps around.

Legend: B rows, T tokens, N heads, G key/value heads, D head width, W window (cache slots).
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.operators.attention import kernel
from archsearch.operators.attention import sdpa
from archsearch.operators.attention.module import Attention
from archsearch.operators.layer import State
from archsearch.operators.sequence import Rows
from archsearch.operators.sliding_window.chunked import attend_blocks
from archsearch.operators.sliding_window.config import SlidingWindowConfig
from archsearch.operators.sliding_window.reference import attend_window


class SlidingWindowAttention(Attention):
    """Causal softmax attention over the last `window` tokens; the cache is a ring."""

    operator = "sliding_window"

    def __init__(self, config: SlidingWindowConfig) -> None:
        super().__init__(config)
        self.window = config.window

    def cache_slots(self, max_len: int) -> int:
        """The window, or less when rows cannot outgrow it."""
        return min(self.window, max_len)

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Attention.causal`; within the window."""
        backend = self.backend(q)
        if backend == "flash_attn":
            return kernel.attend_causal(q, k, v, self.window)
        if backend == "reference":
            return attend_window(q, k, v, self.window)
        if q.shape[1] <= self.window:
            return sdpa.attend_causal(q, k, v)
        return attend_blocks(q, k, v, self.window)

    def extend(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, state: State) -> Tensor:
        """See `Attention.extend`; over the ring and the prompt's own keys under one mask."""
        assert rows.starts is not None
        slots = state["keys"].shape[1]
        # slot i holds the last position before the start that is i modulo the slots
        last = rows.starts[:, None] - 1
        index = torch.arange(slots, device=q.device)
        held = last - (last - index) % slots
        positions = rows.positions(k)
        held = torch.cat([held, positions], dim=1)
        distance = positions[:, :, None] - held[:, None]
        seen = (distance >= 0) & (distance < self.window) & (held >= 0)[:, None]
        keys = torch.cat([state["keys"].to(k.dtype), k], dim=1)
        values = torch.cat([state["values"].to(v.dtype), v], dim=1)
        y = self.masked(q, keys, values, seen)
        self.write_cache(k, v, rows, state)
        return y
