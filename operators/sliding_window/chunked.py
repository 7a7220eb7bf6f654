"""Sliding-window attention in blocks of one window: each block of queries meets its own block
of keys and the one before, so that cost grows with T times window, not T squared.

Legend: B rows, N heads, G key/value heads, T tokens, D head width, W window, C blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of q[B,N,T,D] over the last `window` of k, v[B,G,T,D], itself included."""
    batch, _, length, _ = q.shape
    blocks = -(-length // window)
    pad = blocks * window - length
    queries = F.pad(q, (0, 0, 0, pad)).unflatten(2, (blocks, window))
    keys, values = (
        F.pad(t, (0, 0, window, pad)).unflatten(2, (blocks + 1, window)) for t in (k, v)
    )
    keys = torch.cat([keys[:, :, :-1], keys[:, :, 1:]], dim=3)
    values = torch.cat([values[:, :, :-1], values[:, :, 1:]], dim=3)
    index = torch.arange(2 * window, device=q.device)
    distance = index[:window, None] + window - index
    band = (distance >= 0) & (distance < window)
    mask = band.expand(blocks, -1, -1).clone()
    mask[0, :, :window] = False
    y = F.scaled_dot_product_attention(
        queries.transpose(1, 2).flatten(0, 1),
        keys.transpose(1, 2).flatten(0, 1),
        values.transpose(1, 2).flatten(0, 1),
        attn_mask=mask.repeat(batch, 1, 1)[:, None],
        enable_gqa=True,
    )
    return y.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]
