"""The RWKV-7 recurrence as the paper writes it, in fp32: the truth for other forms.

    S_t = S_{t-1} (diag(exp(w_t)) + a_t b_t^T) + v_t k_t^T        o_t = S_t r_t

With a = -kk and b = kk * rate the state forgets the direction kk at that rate.

Legend: B rows, T tokens, N heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rwkv7_step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, *, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: r, w, k, v, a, b[B,N,D] and state[B,N,D,D], the transposed S (keys by values),
    to (o[B,N,D], state)."""
    removed = a[..., None, :] @ state
    state = state * w.exp()[..., None]
    state = state + b[..., None] * removed + k[..., None] * v[..., None, :]
    return (r[..., None, :] @ state).squeeze(-2), state


def recurrent_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token over r, w, k, v, a, b[B,T,N,D]; returns o[B,T,N,D] in v's dtype and the
    final state [B,N,D,D] in fp32."""
    size = (len(v), *v.shape[2:], v.shape[-1])
    state = torch.zeros(size, device=v.device) if initial_state is None else initial_state.float()
    outputs = []
    for t in range(v.shape[1]):
        r_t, w_t, k_t, v_t, a_t, b_t = (x[:, t].float() for x in (r, w, k, v, a, b))
        o, state = rwkv7_step(r_t, w_t, k_t, v_t, a=a_t, b=b_t, state=state)
        outputs.append(o)
    return torch.stack(outputs, dim=1).to(v.dtype), state
