"""The absorbed form, for one query per row: the expansion of keys moves into the query and that
of values behind the attention, so that every head attends to the latents themselves.

    q^T (W_k c) = (W_k^T q)^T c        sum_s a_s (W_v c_s) = W_v (sum_s a_s c_s)

Legend: B rows, S slots, N heads, D width without rotation, P width with rotation, R latent
width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

# slots that one matrix product sums over where a single row leaves most of a GPU idle
PIECE = 512


def attend_cache(q: Tensor, cache: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """The same as `reference.attend_cache`: q[B,N,D+P], cache[B,S,R+P], weight[N,D+V,R],
    count[B] to [B,N,V]."""
    rank = weight.shape[-1]
    plain = q.shape[-1] - (cache.shape[-1] - rank)
    to_key, to_value = weight[:, :plain], weight[:, plain:]
    inner = torch.bmm(q[..., :plain].transpose(0, 1), to_key).transpose(0, 1)
    query = torch.cat([inner, q[..., plain:]], dim=-1) * q.shape[-1] ** -0.5
    hidden = torch.arange(cache.shape[1], device=q.device) >= count[:, None]
    scores = _scores(query, cache).masked_fill(hidden[:, None], -torch.inf)
    seen = _weighted_sum(torch.softmax(scores, dim=-1).to(q.dtype), cache[..., :rank])
    return torch.bmm(seen.transpose(0, 1), to_value.mT).transpose(0, 1)


def _scores(query: Tensor, cache: Tensor) -> Tensor:
    """query[B,N,R+P] times cache[B,S,R+P], as [B,N,S] in fp32."""
    if query.is_cuda and query.dtype != torch.float32:
        # scores rounded to 16 bits would be off by percents after the exponential
        return torch.bmm(query, cache.mT, out_dtype=torch.float32)
    return torch.bmm(query, cache.mT).float()


def _weighted_sum(weights: Tensor, latents: Tensor) -> Tensor:
    """weights[B,N,S] times latents[B,S,R], as [B,N,R]."""
    slots = latents.shape[1]
    if not weights.is_cuda or len(weights) > 1 or slots < 2 * PIECE:
        return torch.bmm(weights, latents)
    whole = slots - slots % PIECE
    pieces = weights[0, :, :whole].unflatten(-1, (-1, PIECE)).transpose(0, 1)
    sums = torch.bmm(pieces, latents[0, :whole].unflatten(0, (-1, PIECE)))
    return sums.sum(0, keepdim=True) + torch.bmm(weights[..., whole:], latents[:, whole:])
