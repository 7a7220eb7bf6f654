"""The gated delta rule with several writes per token, one by one, in fp32: the truth that other
forms are held to.

Legend: B rows, T tokens, R writes per token, N heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recurrent_delta_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    beta: Tensor,
    log_decay: Tensor,
) -> tuple[Tensor, Tensor]:
    """S <- exp(log_decay_t) S, then for every write r of token t S <- S + beta k (v - S^T k)^T,
    then o_t = S^T q_t, for q[B,T,N,K], k[B,T,R,N,K], v[B,T,R,N,V], beta[B,T,R,N] and
    log_decay[B,T,N] from state[B,N,K,V]; returns o[B,T,N,V] and the last state."""
    q, k, v, state, beta = (x.float() for x in (q, k, v, state, beta))
    decay = log_decay.float().exp()
    outputs = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, None, None] * state
        for r in range(k.shape[2]):
            predicted = torch.einsum("bnkv,bnk->bnv", state, k[:, t, r])
            correction = beta[:, t, r, :, None] * (v[:, t, r] - predicted)
            state = state + torch.einsum("bnk,bnv->bnkv", k[:, t, r], correction)
        outputs.append(torch.einsum("bnkv,bnk->bnv", state, q[:, t]))
    return torch.stack(outputs, dim=1), state
