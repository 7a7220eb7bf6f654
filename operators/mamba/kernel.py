"""Adapters to mamba-ssm: the selective scan in CUDA and its decode step in Triton.

Both add the bias of the time steps, take their softplus, add the skip and gate, in fp32. The
scan wants time as the last dimension.

Legend: B rows, T tokens, D inner width, K state width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.operators.backends import Request

# a step of this length forgets nothing: exp(SHORT A) is 1 in fp32
SHORT = 2.0**-40
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Channels:
    """What each channel has of its own: A[D,K], the skip D[D], the bias of its time steps [D]."""

    a: Tensor
    skip: Tensor
    dt_bias: Tensor


def scan(
    x: Tensor, z: Tensor, dt: Tensor, b: Tensor, c: Tensor, layer: Channels, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gated outputs [B,D,T] and the final state [B,D,K] in fp32 of x, the gate z and raw time
    steps dt[B,D,T], b and c[B,K,T], from state[B,D,K] (None: zero)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    skip, dt_bias = layer.skip.float(), layer.dt_bias.float()
    if state is None:
        y, final = selective_scan_fn(x, dt, layer.a, b, c, skip, z, dt_bias, True, True)
        return y, final
    dt = F.softplus(dt.float() + dt_bias[:, None])
    longer = _put_before(state.float(), x, z, dt, b, c)
    x_, z_, dt_, b_, c_ = longer
    y, final = selective_scan_fn(x_, dt_, layer.a, b_, c_, skip, z_, None, False, True)
    return y[:, :, state.shape[-1] :].to(x.dtype), final


def step_(
    state: Tensor,
    x: Tensor,
    z: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    layer: Channels,
    slots: Tensor,
) -> Tensor:
    """Gated output [B,D] of one token x, z, dt[B,D], b and c[B,K]; state[B,D,K] moves on in
    place, except in the rows whose `slots`[B] are -1."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    y: Tensor = selective_state_update(
        state,
        x,
        dt,
        layer.a,
        b,
        c,
        D=layer.skip,
        z=z,
        dt_bias=layer.dt_bias,
        dt_softplus=True,
        state_batch_indices=slots,
    )
    return y


def refuses(request: Request, d_state: int) -> str:
    """Why mamba-ssm's kernels cannot serve the request; "" if they can."""
    if request.dtype not in DTYPES:
        return "it computes in float32, float16 and bfloat16 only"
    if request.phase == "decode":
        return ""
    if request.device != "cuda":
        return "its scan is written in CUDA"
    if d_state > 256:
        return f"its scan has at most 256 state entries; here they are {d_state}"
    return ""


def _put_before(
    state: Tensor, x: Tensor, z: Tensor, dt: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, ...]:
    """x, z, dt, b and c in fp32 after K tokens that bring a zero state to state[B,D,K].

    The kernel knows no initial state. Token k adds column k, in a step too short to forget.
    """
    batch, _, width = state.shape
    columns = torch.eye(width, device=state.device).expand(batch, -1, -1)
    short = torch.full_like(state, SHORT)
    before = (state / SHORT, torch.zeros_like(state), short, columns, torch.zeros_like(columns))
    texts = (x, z, dt, b, c)
    return tuple(
        torch.cat([first, then.float()], dim=2) for first, then in zip(before, texts, strict=True)
    )
