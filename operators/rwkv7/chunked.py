"""The RWKV-7 recurrence in chunks: a triangular solve within each, one product between them.

Within a chunk, u_t = S_{t-1} a_t (what the state held in the removed direction) depends on
the earlier u of the chunk and on the state S before it: a unit lower triangular system, solved
for the part without S and the part that multiplies S. A chunk then acts on the state as
S -> S M + G, all M and G computed at once.

A log-decay is above -exp(-1/2), so over a chunk of 32 tokens the running sums stay above -20
and their exponentials of either sign fit fp32: no other safeguard is needed.

Legend: B rows, T tokens, N heads, D head width, C chunks, L chunk length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32


def chunk_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over r, w, k, v, a, b[B,T,N,D] with -0.61 <= w <= 0.

    Computes in fp32; returns o[B,T,N,D] in v's dtype and the final state [B,N,D,D]
    (keys by values) in fp32.
    """
    length, width = v.shape[1], v.shape[-1]
    values, decay = _split(v), _split(w)  # [B,N,C,L,D]
    sums = decay.cumsum(-2)
    grown = sums.exp()
    shrunk = (-sums).exp()
    reads = _split(r) * grown
    # u_t reads the state before it decays at t
    probes = _split(a) * (sums - decay).exp()
    gains = torch.cat([_split(b) * shrunk, _split(k) * shrunk], dim=-2)  # [B,N,C,2L,D]

    scores = torch.cat([probes, reads], dim=-2) @ gains.transpose(-1, -2)  # [B,N,C,2L,2L]
    probe_scores, read_scores = scores.chunk(2, dim=-2)
    probe_b, probe_k = (t.tril(-1) for t in probe_scores.chunk(2, dim=-1))
    read_b, read_k = (t.tril() for t in read_scores.chunk(2, dim=-1))

    # u = solved[..., :D] + solved[..., D:] S^T
    free = torch.cat([probe_k @ values, probes], dim=-1)
    eye = torch.eye(CHUNK, device=v.device)
    solved = torch.linalg.solve_triangular(eye - probe_b, free, upper=False, unitriangular=True)

    # [B,N,C,L,2D], likewise split into what is given and what multiplies S^T
    outputs = read_b @ solved
    given = outputs[..., :width] + read_k @ values
    carried = outputs[..., width:] + reads

    last = grown[..., -1:, :]
    b_end, k_end = (gains * last).chunk(2, dim=-2)
    changes = b_end.transpose(-1, -2) @ solved  # [B,N,C,D,2D]
    gained = changes[..., :width] + k_end.transpose(-1, -2) @ values
    kept = changes[..., width:] + torch.diag_embed(last.squeeze(-2))
    if initial_state is None:
        state = torch.zeros_like(gained[:, :, 0])
    else:
        state = initial_state.float()
    before = []
    for keep, gain in zip(kept.unbind(2), gained.unbind(2), strict=True):
        before.append(state)
        state = gain + keep @ state
    o = given + carried @ torch.stack(before, dim=2)
    o = o.flatten(2, 3)[:, :, :length].transpose(1, 2)
    return o.to(v.dtype), state


def _split(x: Tensor) -> Tensor:
    """x[B,T,N,D] as fp32 [B,N,C,L,D]; zeros at the end change nothing."""
    pad = -x.shape[1] % CHUNK
    x = x.transpose(1, 2).float()
    return F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, CHUNK))
