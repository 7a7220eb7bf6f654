"""Latent attention as the paper writes it, in fp32: the truth that other forms are held to.

Legend: B rows, Q queries, S keys, N heads, D width without rotation, P width with rotation,
R latent width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.operators.attention import reference


def attend(q: Tensor, cache: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Attention of q[B,Q,N,D+P] over the keys and values that `weight`[N,D+V,R] makes of the
    latents in cache[B,S,R+P]; `mask`, broadcast to [B,Q,S], is true where a query sees a key.
    Returns [B,Q,N,V] in q's dtype."""
    heads, _, rank = weight.shape
    plain = q.shape[-1] - (cache.shape[-1] - rank)
    latent, rotated = cache.float().split([rank, cache.shape[-1] - rank], dim=-1)
    both = torch.einsum("bsr,ndr->bsnd", latent, weight.float())
    keys, values = both.split([plain, weight.shape[1] - plain], dim=-1)
    keys = torch.cat([keys, rotated[:, :, None].expand(-1, -1, heads, -1)], dim=-1)
    return reference.attend(q, keys, values, mask)


def attend_causal(q: Tensor, cache: Tensor, weight: Tensor) -> Tensor:
    """`attend` where a query sees itself and what is before it: q[B,T,N,D+P] and
    cache[B,T,R+P] to [B,T,N,V]."""
    length = q.shape[1]
    return attend(q, cache, weight, q.new_ones(length, length, dtype=torch.bool).tril())


def attend_cache(q: Tensor, cache: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """`attend` of one query per row, q[B,N,D+P], to the first `count`[B] slots of
    cache[B,S,R+P]; returns [B,N,V]."""
    seen = torch.arange(cache.shape[1], device=q.device) < count[:, None]
    return attend(q[:, None], cache, weight, seen[:, None])[:, 0]
