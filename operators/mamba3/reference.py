"""The Mamba-3 recurrence in fp32, one step at a time: the truth that other forms are held to.

    theta_t = theta_{t-1} + pi tanh(angle_t) dt_t      k_t = R(theta_t)(B_t + b), q_t likewise
    S_t = a_t S_{t-1} + a_t dt_t (1 - w_t) v_{t-1} k_{t-1}^T + dt_t w_t v_t k_t^T
    y_t = (S_t q_t + D v_t) silu(z_t)                  a_t = exp(log_decay_t), w_t in 0..1

Legend: B rows, T tokens, N heads, G groups, P head width, K state width, S angles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Tokens(NamedTuple):
    """What the tokens bring: c and b[B,T,G,K], v[B,T,N,P], dt, log_decay and trap[B,T,N] (the
    logit of w), angle[B,T,S], gate[B,T,N,P] or None; and what the layer has: b_bias and
    c_bias[N,K], skip[N]. A single token has no T."""

    c: Tensor
    b: Tensor
    v: Tensor
    dt: Tensor
    log_decay: Tensor
    trap: Tensor
    angle: Tensor
    gate: Tensor | None
    c_bias: Tensor
    b_bias: Tensor
    skip: Tensor

    def at(self, t: int) -> Tokens:
        """Token `t` alone."""
        given = {name: getattr(self, name) for name in self._fields[:8]}
        return self._replace(**{name: x[:, t] for name, x in given.items() if x is not None})


class Carried(NamedTuple):
    """What a row carries on: ssm[B,N,P,K], angle[B,N,S], and k[B,N,K], v[B,N,P] of the last
    token."""

    ssm: Tensor
    angle: Tensor
    k: Tensor
    v: Tensor


def empty(tokens: Tokens) -> Carried:
    """The state of rows that have seen nothing, in fp32."""
    batch, heads, width = len(tokens.v), *tokens.v.shape[-2:]
    new = torch.zeros
    device = tokens.v.device
    return Carried(
        new(batch, heads, width, tokens.b.shape[-1], device=device),
        new(batch, heads, tokens.angle.shape[-1], device=device),
        new(batch, heads, tokens.b.shape[-1], device=device),
        new(batch, heads, width, device=device),
    )


def turn(maps: Tensor, bias: Tensor, angle: Tensor) -> Tensor:
    """Give maps[...,G,K] to the heads, add their bias[N,K], and turn the channels 2i and 2i+1
    by angle[...,N,S]; the channels after 2S stay. Returns [...,N,K] in fp32."""
    maps = maps.float().repeat_interleave(len(bias) // maps.shape[-2], dim=-2) + bias.float()
    turned = 2 * angle.shape[-1]
    even, odd = maps[..., :turned:2], maps[..., 1:turned:2]
    cos, sin = angle.cos(), angle.sin()
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return torch.cat([pairs.flatten(-2), maps[..., turned:]], dim=-1)


def finish(y: Tensor, tokens: Tokens) -> Tensor:
    """Add the skip and apply the gate to y[...,N,P] (fp32); returns it in v's dtype."""
    y = y + tokens.skip.float()[:, None] * tokens.v.float()
    if tokens.gate is not None:
        y = y * F.silu(tokens.gate.float())
    return y.to(tokens.v.dtype)


def step(now: Tokens, past: Carried) -> tuple[Tensor, Carried]:
    """One token: y[B,N,P] in v's dtype, and what is carried on, in fp32."""
    dt, v = now.dt.float()[..., None], now.v.float()
    angle = past.angle + torch.tanh(now.angle.float())[:, None] * math.pi * dt
    angle = angle.remainder(2 * math.pi)
    q, k = turn(now.c, now.c_bias, angle), turn(now.b, now.b_bias, angle)
    decay = now.log_decay.float().exp()[..., None]
    weight = torch.sigmoid(now.trap.float())[..., None]
    late = (decay * dt * (1 - weight) * past.v.float())[..., None] * past.k.float()[:, :, None]
    new = (dt * weight * v)[..., None] * k[:, :, None]
    ssm = decay[..., None] * past.ssm.float() + late + new
    y = (ssm @ q[..., None]).squeeze(-1)
    return finish(y, now), Carried(ssm, angle, k, v)


def scan(tokens: Tokens, past: Carried | None, *, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens: y[B,T,N,P] in v's dtype, ssm[B,N,P,K] and angle[B,N,S] after them. (`chunk`
    is for the form in chunks.)"""
    del chunk
    carried = past or empty(tokens)
    outputs = []
    for t in range(tokens.v.shape[1]):
        y, carried = step(tokens.at(t), carried)
        outputs.append(y)
    return torch.stack(outputs, dim=1), carried.ssm, carried.angle
