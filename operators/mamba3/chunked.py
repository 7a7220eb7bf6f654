"""Mamba-3 in chunks, as one linear attention with a scalar decay.

What token t leaves behind it is its own new part, dt_t w_t v_t k_t^T, and the late part that
the trapezoidal rule adds at t+1, dt_{t+1} (1 - w_{t+1}) v_t k_t^T. Both enter at t+1: the keys
and values are those of the token before, and the token's own part is added to its output. No
output depends on what comes later, not even by rounding.

Legend: B rows, T tokens, N heads, P head width, K state width, S angles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from archsearch.operators.common.scalar_decay import chunk_scalar_decay
from archsearch.operators.mamba3.reference import Carried
from archsearch.operators.mamba3.reference import Tokens
from archsearch.operators.mamba3.reference import empty
from archsearch.operators.mamba3.reference import finish
from archsearch.operators.mamba3.reference import turn


def scan(tokens: Tokens, past: Carried | None, *, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `reference.scan`, `chunk` tokens at a time."""
    before = past or empty(tokens)
    dt, v = tokens.dt.float(), tokens.v.float()
    angle = angles(tokens, before.angle)
    q, k = turn(tokens.c, tokens.c_bias, angle), turn(tokens.b, tokens.b_bias, angle)
    weight = torch.sigmoid(tokens.trap.float())
    new = dt * weight
    held = torch.cat([torch.zeros_like(new[:, :1]), new[:, :-1]], dim=1)
    entering = tokens.log_decay.float().exp() * (held + dt * (1 - weight))
    y, kept = chunk_scalar_decay(
        q,
        _delayed(k, before.k),
        _delayed(v, before.v) * entering[..., None],
        tokens.log_decay,
        initial_state=before.ssm.transpose(-1, -2),
        chunk=chunk,
    )
    y = y + (new * (q * k).sum(-1))[..., None] * v
    last = (new[:, -1, :, None] * v[:, -1])[..., None] * k[:, -1, :, None]
    return finish(y, tokens), kept.transpose(-1, -2) + last, angle[:, -1]


def angles(tokens: Tokens, before: Tensor) -> Tensor:
    """The angle of every token [B,T,N,S], in 0..2 pi, that follow `before`[B,N,S]."""
    rate = torch.tanh(tokens.angle.float()) * math.pi
    # thousands of turns are summed: in fp32 their fraction would be lost
    total = (rate[:, :, None] * tokens.dt.float()[..., None]).cumsum(1, dtype=torch.float64)
    return (total + before[:, None]).remainder(2 * math.pi).float()


def _delayed(x: Tensor, first: Tensor) -> Tensor:
    """x[B,T,...] one token later, with `first`[B,...] in front."""
    return torch.cat([first[:, None].to(x.dtype), x[:, :-1]], dim=1)
