"""Attention by torch's scaled-dot-product kernels.

Legend: B rows, N heads, G key/value heads, T tokens, Q queries, S keys, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q[B,Q,N,D] over k and v[B,S,G,D], which `mask`, broadcast to [B,Q,S], lets it see;
    returns [B,Q,N,D]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    shared = k.shape[1] < q.shape[1]
    if shared and q.is_cuda:
        # of torch's fast CUDA kernels none takes a mask together with grouped heads
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        shared = False
    mask = mask[..., None, :, :]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
    return y.transpose(1, 2)


def attend_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query sees itself and what is before it: q[B,T,N,D], k and v[B,T,G,D] to
    [B,T,N,D]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    shared = k.shape[1] < q.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
    return y.transpose(1, 2)


def attend_cache(q: Tensor, keys: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """One query per row, q[B,N,D], over the first `count`[B] slots of keys and
    values[B,S,G,D]; returns [B,N,D]."""
    # the heads of a group see the same keys: they become rows of queries, nothing is repeated
    queries = q.unflatten(1, (keys.shape[2], -1))
    seen = torch.arange(keys.shape[1], device=q.device) < count[:, None]
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen[:, None, None])
    return y.flatten(1, 2)
