"""Kimi Delta Attention, fast: in chunks over a prompt, and one token at a time.

Keys decay by a vector, so that a pair of tokens overlaps by sum_c x_i[c] k_j[c] exp(s_i - s_j)[c],
s the running sum of log-decays. Splitting that into exp(s_i) and exp(-s_j) overflows under strong
gates. Here a chunk is halved again and again: a token in the later half meets a key in the
earlier half by way of the boundary m between them, exp(s_i - s_m) exp(s_m - s_j), both at most 1.
The rest is the delta rule's triangular system.

Legend: B rows, T tokens, N heads, K key width, V value width, M chunks, C chunk length,
P blocks, L block length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.operators.common.delta_rule import carry_chunks
from archsearch.operators.common.delta_rule import to_chunks

CHUNK = 32
LEAF = 4


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    beta: Tensor,
    log_decay: Tensor,
) -> tuple[Tensor, Tensor]:
    """Outputs o[B,T,N,V] and the final state for q, k and log_decay[B,T,N,K] (<= 0), v[B,T,N,V],
    beta[B,T,N], from state[B,N,K,V]; everything in fp32."""
    length = q.shape[1]
    q, k, v, beta, decay = (to_chunks(x, CHUNK) for x in (q, k, v, beta[..., None], log_decay))
    sums = decay.cumsum(-2)
    scores, overlap = _pairs(torch.stack([q, k]), k, sums).unbind()
    since, last = sums.exp(), sums[..., -1:, :]
    o, final = carry_chunks(
        q * since,
        k * since,
        k * (last - sums).exp(),
        v,
        beta=beta,
        overlap=overlap * beta,
        scores=scores,
        ends=last.exp().mT,
        state=state,
    )
    return o[:, :length], final


def kda_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    beta: Tensor,
    log_decay: Tensor,
) -> Tensor:
    """Output o[B,N,V] of one token q, k and log_decay[B,N,K], v[B,N,V], beta[B,N];
    state[B,N,K,V] moves on in place, and stays where beta and log_decay are 0."""
    current = state.float()
    decay = log_decay.exp()
    seen = (torch.stack([k, q], dim=2) * decay[:, :, None]) @ current
    correction = beta[..., None] * (v - seen[:, :, 0])
    current.mul_(decay[..., None]).addcmul_(k[..., None], correction[:, :, None])
    if current is not state:
        state.copy_(current)
    return seen[:, :, 1] + (q * k).sum(-1, keepdim=True) * correction


def _pairs(x: Tensor, k: Tensor, sums: Tensor) -> Tensor:
    """sum_c x_i[c] k_j[c] exp(s_i - s_j)[c] for j <= i, else 0, of the tokens of a chunk:
    x[...,M,B*N,C,K] with k and sums[M,B*N,C,K] to [...,M,B*N,C,C]."""
    pairs = _leaves(*(t.unflatten(-2, (-1, LEAF)) for t in (x, k, sums)))
    size = LEAF
    while size < k.shape[-2]:
        # [...,P,2,L,K]: earlier and later half of each block
        x_halves, k_halves, s_halves = (t.unflatten(-2, (-1, 2, size)) for t in (x, k, sums))
        earlier, later = s_halves.unbind(-3)
        boundary = earlier[..., -1:, :]
        reads = x_halves[..., 1, :, :] * (later - boundary).exp()
        keys = k_halves[..., 0, :, :] * (boundary - earlier).exp()
        crossing = reads @ keys.mT
        first, second = pairs.unflatten(-3, (-1, 2)).unbind(-3)
        top = torch.cat([first, torch.zeros_like(first)], dim=-1)
        pairs = torch.cat([top, torch.cat([crossing, second], dim=-1)], dim=-2)
        size *= 2
    return pairs.squeeze(-3)


def _leaves(x: Tensor, k: Tensor, sums: Tensor) -> Tensor:
    """The smallest blocks [...,P,L,K], every pair of tokens by itself."""
    size = k.shape[-2]
    later = torch.ones(size, size, dtype=torch.bool, device=k.device).triu_(1)[..., None]
    # masked before exp: what lies above the diagonal may overflow
    between = (sums[..., :, None, :] - sums[..., None, :, :]).masked_fill(later, -torch.inf).exp()
    return (x[..., :, None, :] * (k[..., None, :, :] * between)).sum(-1)
