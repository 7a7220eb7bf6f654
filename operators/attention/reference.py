"""Softmax attention as the formula says it, in fp32: the truth that other forms are held to.

Legend: B rows, N heads, G key/value heads, Q queries, S keys, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for q[B,Q,N,D], k and v[B,S,G,D]; `mask`, broadcast to
    [B,Q,S], is true where a query sees a key. Returns [B,Q,N,D] in q's dtype."""
    groups = q.shape[2] // k.shape[2]
    queries = q.float().transpose(1, 2)
    keys, values = (t.float().transpose(1, 2).repeat_interleave(groups, dim=1) for t in (k, v))
    scores = queries @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~mask[..., None, :, :], -torch.inf), dim=-1)
    return (weights @ values).transpose(1, 2).to(q.dtype)


def attend_causal(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """`attend` where a query sees itself and what is before it (the last `window` keys, itself
    included): q[B,T,N,D], k and v[B,T,G,D] to [B,T,N,D]."""
    index = torch.arange(q.shape[1], device=q.device)
    distance = index[:, None] - index
    seen = distance >= 0
    return attend(q, k, v, seen if window is None else seen & (distance < window))


def attend_cache(q: Tensor, keys: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """`attend` of one query per row, q[B,N,D], to the first `count`[B] slots of keys and
    values[B,S,G,D]; returns [B,N,D]."""
    seen = torch.arange(keys.shape[1], device=q.device) < count[:, None]
    return attend(q[:, None], keys, values, seen[:, None])[:, 0]
