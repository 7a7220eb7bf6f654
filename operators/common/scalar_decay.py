"""Linear attention whose state decays by one scalar per head and step (state-space duality).

    S_t = exp(a_t) S_{t-1} + k_t v_t^T        y_t = q_t^T S_t

in chunks: within a chunk as masked attention, between chunks through the state.

Legend: B rows, T tokens, G groups of heads that share q and k, R heads per group, N = G R
heads, K key width, V value width, C chunks, L chunk length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def chunk_scalar_decay(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over q, k[B,T,G,K], v[B,T,N,V], log_decay[B or 1,T,N] <= 0.

    Head n reads q and k of group n // (N / G). Computes in fp32; returns y[B,T,N,V] in v's
    dtype and the final state [B,N,K,V] in fp32.
    """
    batch, length, heads, _ = v.shape
    groups = k.shape[2]
    assert heads % groups == 0, f"{heads} heads do not share {groups} groups evenly"
    chunks = -(-length // chunk)
    size = -(-length // chunks)

    q, k = (_split(t, chunks, size).transpose(2, 3) for t in (q, k))  # [B,C,G,L,K]
    values = _split(v, chunks, size).unflatten(3, (groups, -1)).transpose(2, 3)  # [B,C,G,L,R,V]
    sums = _split(log_decay, chunks, size).unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2)
    sums = sums.cumsum(-1)  # [B,C,G,R,L]

    scores = (q @ k.transpose(-1, -2))[:, :, :, None]
    y = (scores * _decay_between(sums)) @ values.transpose(3, 4)  # [B,C,G,R,L,V]

    total = sums[..., -1:]
    weighted = values * (total - sums).exp().transpose(-1, -2)[..., None]
    gained = k.transpose(-1, -2) @ weighted.flatten(-2)  # [B,C,G,K,R*V]
    if initial_state is None:
        state = gained.new_zeros(()).expand(batch, *gained.shape[2:])
    else:
        state = initial_state.float().unflatten(1, (groups, -1)).transpose(2, 3).flatten(-2)
    kept = total.exp().expand(-1, -1, -1, -1, v.shape[3]).flatten(-2)[..., None, :]
    before = []
    for gain, keep in zip(gained.unbind(1), kept.unbind(1), strict=True):
        before.append(state)
        state = torch.addcmul(gain, state, keep)
    carried = (q @ torch.stack(before, dim=1)).unflatten(-1, (heads // groups, -1))
    y = torch.addcmul(y.transpose(3, 4), carried, sums.exp().transpose(-1, -2)[..., None])

    y = y.transpose(2, 3).reshape(batch, chunks * size, heads, -1)[:, :length]
    state = state.unflatten(-1, (heads // groups, -1)).transpose(2, 3).flatten(1, 2)
    return y.to(v.dtype), state


def _split(x: Tensor, chunks: int, size: int) -> Tensor:
    """x[B,T,...] as fp32 [B,C,L,...]; zeros at the end neither decay nor add."""
    pad = chunks * size - x.shape[1]
    x = x.float()
    if pad:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, pad))
    return x.unflatten(1, (chunks, size))


def _decay_between(sums: Tensor) -> Tensor:
    """exp(sums_i - sums_j) where j <= i, else 0: [..., L] to [..., L, L]."""
    size = sums.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=sums.device).triu_(1)
    # masked before exp: what lies above the diagonal may overflow
    return (sums[..., :, None] - sums[..., None, :]).masked_fill_(later, -torch.inf).exp_()
