"""The Mamba-2 recurrence in fp32, one step at a time: the truth that other forms are held to.

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T        y_t = S_t C_t

Legend: B rows, T tokens, N heads, G groups, P head width, K state width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: state[B,N,P,K], x[B,N,P], dt[B,N], a[N], b and c[B,G,K].

    Returns y[B,N,P] in x's dtype and the new state in fp32.
    """
    heads_per_group = x.shape[1] // b.shape[1]
    b = b.float().repeat_interleave(heads_per_group, dim=1)
    c = c.float().repeat_interleave(heads_per_group, dim=1)
    dt = dt.float()
    decay = torch.exp(dt * a.float())
    gain = (dt[..., None] * x.float())[..., None] * b[:, :, None]
    state = decay[..., None, None] * state.float() + gain
    y = (state @ c[..., None]).squeeze(-1)
    return y.to(x.dtype), state


def ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All steps: x[B,T,N,P], dt[B,T,N], a[N], b and c[B,T,G,K], state[B,N,P,K] or None (zero).

    Returns y[B,T,N,P] in x's dtype and the final state in fp32.
    """
    if state is None:
        state = x.new_zeros(*x.shape[:1], *x.shape[2:], b.shape[-1], dtype=torch.float32)
    outputs = []
    for t in range(x.shape[1]):
        y, state = ssd_step(state, x[:, t], dt[:, t], a, b[:, t], c[:, t])
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
