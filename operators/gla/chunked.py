"""Gated linear attention in chunks: within a chunk as masked attention, between chunks
through the state.

Keys decay by a vector, so a pair of tokens is weighted by exp(s_i - s_j), s the running sum
of log-decays. Splitting that into exp(s_i) and exp(-s_j) overflows under strong gates. Here a
chunk is halved again and again: a query in the later half meets a key in the earlier half by
way of the boundary m between them, exp(s_i - s_m) exp(s_m - s_j), both at most 1.

Legend: B rows, T tokens, N heads, K key width, V value width, C chunks, L chunk length,
P blocks, M block length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32
LEAF = 4


def chunk_gla(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over q, k, log_decay[B,T,N,K] (log_decay <= 0) and v[B,T,N,V].

    Computes in fp32; returns o[B,T,N,V] in v's dtype and the final state [B,N,K,V] in fp32.
    """
    batch, length, heads, width = q.shape
    scaled, keys, values, decay = (_split(t) for t in (q * width**-0.5, k, v, log_decay))
    sums = decay.cumsum(-2)  # [B,N,C,L,K]
    total = sums[..., -1:, :]

    gained = (keys * (total - sums).exp()).transpose(-1, -2) @ values  # [B,N,C,K,V]
    kept = total.exp().transpose(-1, -2)
    if initial_state is None:
        state = q.new_zeros(batch, heads, width, v.shape[-1], dtype=torch.float32)
    else:
        state = initial_state.float()
    before = []
    for gain, keep in zip(gained.unbind(2), kept.unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(gain, state, keep)

    o = _within(scaled, keys, values, sums)
    o = o + (scaled * sums.exp()) @ torch.stack(before, dim=2)
    o = o.flatten(2, 3)[:, :, :length].transpose(1, 2)
    return o.to(v.dtype), state


def _split(x: Tensor) -> Tensor:
    """x[B,T,N,D] as fp32 [B,N,C,L,D]; zeros at the end neither decay nor add."""
    pad = -x.shape[1] % CHUNK
    x = x.transpose(1, 2).float()
    return F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, CHUNK)).contiguous()


def _within(q: Tensor, k: Tensor, v: Tensor, sums: Tensor) -> Tensor:
    """What the tokens of one chunk give each other: [...,L,K] and v[...,L,V] to [...,L,V]."""
    o = _leaves(*(t.unflatten(-2, (-1, LEAF)) for t in (q, k, v, sums)))
    size = LEAF
    while size < q.shape[-2]:
        # [...,P,2,M,D]: earlier and later half of each block
        halves = [t.unflatten(-2, (-1, 2, size)) for t in (q, k, v, sums)]
        queries, later = (halves[i][..., 1, :, :] for i in (0, 3))
        keys, values, earlier = (halves[i][..., 0, :, :] for i in (1, 2, 3))
        boundary = earlier[..., -1:, :]
        queries = queries * (later - boundary).exp()
        keys = keys * (boundary - earlier).exp()
        crossing = queries @ keys.transpose(-1, -2) @ values
        first, second = o.unflatten(-3, (-1, 2)).unbind(-3)
        o = torch.cat([first, second + crossing], dim=-2)
        size *= 2
    return o.flatten(-3, -2)


def _leaves(q: Tensor, k: Tensor, v: Tensor, sums: Tensor) -> Tensor:
    """The smallest blocks [...,P,M,D], every pair of tokens by itself."""
    size = q.shape[-2]
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu_(1)[..., None]
    # masked before exp: what lies above the diagonal may overflow
    between = (sums[..., :, None, :] - sums[..., None, :, :]).masked_fill(later, -torch.inf).exp()
    return (q[..., :, None, :] * k[..., None, :, :] * between).sum(-1) @ v
