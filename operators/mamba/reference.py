"""The selective scan in fp32, one step at a time: the truth that other forms are held to.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t

with dt and x per channel, A per channel and state entry, B and C shared by the channels.

Legend: B rows, T tokens, D inner width, K state width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan_step(
    state: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: state[B,D,K], x and dt[B,D], a[D,K], b and c[B,K].

    Returns y[B,D] in x's dtype and the new state in fp32.
    """
    dt = dt.float()
    decay = torch.exp(dt[..., None] * a.float())
    gain = (dt * x.float())[..., None] * b.float()[:, None]
    state = decay * state.float() + gain
    y = (state @ c.float()[..., None]).squeeze(-1)
    return y.to(x.dtype), state


def scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All steps: x and dt[B,T,D], a[D,K], b and c[B,T,K], state[B,D,K] or None (zero).

    Returns y[B,T,D] in x's dtype and the final state in fp32.
    """
    if state is None:
        state = x.new_zeros(len(x), *a.shape, dtype=torch.float32)
    outputs = []
    for t in range(x.shape[1]):
        y, state = scan_step(state, x[:, t], dt[:, t], a, b[:, t], c[:, t])
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
