"""The delta rule with optional decay, fast: in chunks over a prompt, and one token at a time.

S_t = d_t S_{t-1} + beta_t k_t (v_t - d_t k_t^T S_{t-1})^T and o_t = q_t^T S_t, with the decay
d_t = exp(log_decay_t), or 1 where there is none. Within a chunk the corrections
u_t = beta_t (v_t - d_t k_t^T S_{t-1}) solve a triangular system (the WY form), so that time
is looped over chunk by chunk.

Legend: B rows, T tokens, N heads, K key width, V value width, C chunk, M chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32
L2_EPS = 1e-6


def l2_normalize(x: Tensor) -> Tensor:
    """x[..., K] / sqrt(sum x^2 + 1e-6) in fp32."""
    x = x.float()
    return x * (x.square().sum(-1, keepdim=True) + L2_EPS).rsqrt()


def chunked_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs o[B,T,N,V] and the final state for q, k[B,T,N,K], v[B,T,N,V], beta and
    log_decay[B,T,N], from state[B,N,K,V]; everything in fp32."""
    length = q.shape[1]
    size = min(CHUNK, length)
    q, k, v, beta = (to_chunks(x, size) for x in (q, k, v, beta[..., None]))
    overlap, scores = (k @ k.mT) * beta, q @ k.mT
    old, new, ends = k, k, None
    if log_decay is not None:
        total = to_chunks(log_decay[..., None], size).cumsum(2)
        # only past over present: the other half could overflow
        pairwise = (total - total.mT).tril().exp()
        overlap, scores = overlap * pairwise, scores * pairwise
        since, last = total.exp(), total[:, :, -1:]
        q, old, new = q * since, k * since, k * (last - total).exp()
        ends = last.exp()
    scores = scores.tril()
    o, final = carry_chunks(
        q, old, new, v, beta=beta, overlap=overlap, scores=scores, ends=ends, state=state
    )
    return o[:, :length], final


def delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
) -> Tensor:
    """Output o[B,N,V] of one token q, k[B,N,K], v[B,N,V], beta and log_decay[B,N];
    state[B,N,K,V] moves on in place, and stays where beta and log_decay are 0."""
    current = state.float()
    seen = torch.stack([k, q], dim=2) @ current
    if log_decay is not None:
        decay = log_decay.exp()[..., None, None]
        seen, current = seen * decay, current.mul_(decay)
    correction = beta[..., None] * (v - seen[:, :, 0])
    current.addcmul_(k[..., None], correction[:, :, None])
    if current is not state:
        state.copy_(current)
    return seen[:, :, 1] + (q * k).sum(-1, keepdim=True) * correction


def to_chunks(x: Tensor, size: int) -> Tensor:
    """x[B,T,N,*] as [M,B*N,C,*] in fp32; tokens added at the end are zero and change nothing."""
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    x = x.float().unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4)
    return x.flatten(1, 2).contiguous()


def carry_chunks(
    q: Tensor,
    old: Tensor,
    new: Tensor,
    v: Tensor,
    *,
    beta: Tensor,
    overlap: Tensor,
    scores: Tensor,
    ends: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Solve M chunks of C writes and carry state[B,N,K,V] through them; returns o[B,M*Q,N,V]
    of Q queries a chunk, and the last state.

    q[M,B*N,Q,K] and old[M,B*N,C,K] are the queries and keys that read the state before the
    chunk, new the keys that write at its end, v the values, beta[M,B*N,C,1] the write strengths.
    overlap[M,B*N,C,C] is keys times keys times beta (its lower triangle counts), scores
    [M,B*N,Q,C] queries times the keys they see; a chunk decays the state by ends[M,B*N,1 or K,1].
    """
    batch, heads = state.shape[:2]
    identity = torch.eye(overlap.shape[-1], device=q.device).expand_as(overlap)
    inverse = torch.linalg.solve_triangular(
        overlap.tril(-1), identity, upper=False, unitriangular=True
    )
    chunks = (q, old, new, v, inverse * beta.mT, scores)
    o, final = _scan(chunks, ends, state.flatten(0, 1))
    o = o.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)
    return o, final.unflatten(0, (batch, heads))


def _scan(chunks: tuple[Tensor, ...], ends: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Carry state[B*N,K,V] through the chunks, each decaying it by `ends` in all."""
    state = state.float()
    outputs = []
    decays = None if ends is None else ends.unbind()
    # unbind, not indexing: its gradient is one stack rather than a sum of padded copies
    for index, chunk in enumerate(zip(*(x.unbind() for x in chunks), strict=True)):
        q, old, new, v, inverse, scores = chunk
        corrections = inverse @ torch.baddbmm(v, old, state, alpha=-1)
        outputs.append(torch.baddbmm(q @ state, scores, corrections))
        kept = state if decays is None else state * decays[index]
        state = torch.baddbmm(kept, new.mT, corrections)
    return torch.stack(outputs), state
