"""Sliding-window attention in blocks of one window: each block of queries meets its own block
of keys and the one before, so that cost grows with T times window, not T squared.

Legend: B rows, N heads, G key/value heads, T tokens, D head width, W window, C blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.operators.attention.sdpa import attend


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of q[B,T,N,D] over the last `window` of k, v[B,T,G,D], itself included."""
    batch, length = q.shape[:2]
    blocks = -(-length // window)
    pad = blocks * window - length
    queries = F.pad(q, (0, 0, 0, 0, 0, pad)).unflatten(1, (blocks, window))
    keys, values = (
        F.pad(t, (0, 0, 0, 0, window, pad)).unflatten(1, (blocks + 1, window)) for t in (k, v)
    )
    keys = torch.cat([keys[:, :-1], keys[:, 1:]], dim=2)
    values = torch.cat([values[:, :-1], values[:, 1:]], dim=2)
    index = torch.arange(2 * window, device=q.device)
    distance = index[:window, None] + window - index
    band = (distance >= 0) & (distance < window)
    mask = band.expand(blocks, -1, -1).clone()
    mask[0, :, :window] = False
    y = attend(
        queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), mask.repeat(batch, 1, 1)
    )
    return y.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :length]
