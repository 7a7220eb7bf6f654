"""Retention as the paper writes it, in fp32: the truth for other forms.

    S_t = gamma S_{t-1} + k_t v_t^T        o_t = S_t^T q_t / sqrt(K)
    gamma_n = 1 - 2^(-5-n) for head n = 0, 1, ...

Legend: B rows, T tokens, N heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_decays(num_heads: int, device: torch.device | str) -> Tensor:
    """log gamma of every head, as fp32 [N]."""
    return torch.log1p(-torch.exp2(-5.0 - torch.arange(num_heads, device=device)))


def retention_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: q, k[B,N,K], v[B,N,V], log_decay[B or 1,N] and state[B,N,K,V] to
    (o[B,N,V], state)."""
    state = log_decay.exp()[..., None, None] * state + k[..., None] * v[..., None, :]
    o = (q[..., None] * state).sum(-2) * q.shape[-1] ** -0.5
    return o, state


def recurrent_retention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token over q, k[B,T,N,K], v[B,T,N,V] and log_decay[B or 1,T,N] (zero at
    padding); returns o[B,T,N,V] in v's dtype and the final state [B,N,K,V] in fp32."""
    size = (len(q), *q.shape[2:], v.shape[-1])
    state = torch.zeros(size, device=q.device) if initial_state is None else initial_state.float()
    outputs = []
    for t in range(q.shape[1]):
        o, state = retention_step(
            q[:, t].float(), k[:, t].float(), v[:, t].float(), log_decay[:, t], state
        )
        outputs.append(o)
    return torch.stack(outputs, dim=1).to(v.dtype), state
