"""The delta rule with a decay per key channel, token by token, in fp32: the truth that other
forms are held to.

Legend: B rows, T tokens, N heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    beta: Tensor,
    log_decay: Tensor,
) -> tuple[Tensor, Tensor]:
    """S_t = D_t S_{t-1} + beta_t k_t (v_t - (D_t S_{t-1})^T k_t)^T and o_t = S_t^T q_t, with
    D = diag(exp(log_decay)), for q, k and log_decay[B,T,N,K], v[B,T,N,V], beta[B,T,N] from
    state[B,N,K,V]; returns o[B,T,N,V] and the last state."""
    q, k, v, state, beta = (x.float() for x in (q, k, v, state, beta))
    decay = log_decay.float().exp()
    outputs = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state
        predicted = torch.einsum("bnkv,bnk->bnv", state, k[:, t])
        correction = beta[:, t, :, None] * (v[:, t] - predicted)
        state = state + torch.einsum("bnk,bnv->bnkv", k[:, t], correction)
        outputs.append(torch.einsum("bnkv,bnk->bnv", state, q[:, t]))
    return torch.stack(outputs, dim=1), state
