"""Adapters to mamba-ssm's Triton kernels: the scan in chunks both ways, and one step in place.

Both add the bias of the time steps, take their softplus, and add the skip, in fp32.

Legend: B rows, T tokens, N heads, G groups, P head width, K state width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.common import tuning
from archsearch.operators.mamba2.config import Mamba2Config

CHUNKS = (16, 32, 64, 128, 256)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Heads:
    """What each head has of its own: A, the skip D and the bias of its time steps, all [N]."""

    a: Tensor
    skip: Tensor
    dt_bias: Tensor


def ssd(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, layer: Heads, state: Tensor | None, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """Outputs [B,T,N,P], skip included, and the final state [B,N,P,K] in fp32 of x[B,T,N,P],
    raw time steps dt[B,T,N], b and c[B,T,G,K], from state[B,N,P,K] (None: zero)."""
    y, final = _combined()(
        x,
        dt,
        layer.a,
        b,
        c,
        chunk,
        D=layer.skip,
        dt_bias=layer.dt_bias,
        initial_states=state,
        dt_softplus=True,
        return_final_states=True,
    )
    return y, final


def step_(
    state: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, layer: Heads, slots: Tensor
) -> Tensor:
    """Output [B,N,P], skip included, of one token x[B,N,P], dt[B,N], b and c[B,G,K];
    state[B,N,P,K] moves on in place, except in the rows whose `slots`[B] are -1."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    _, heads, width, entries = state.shape
    # strides of zero tell the kernel that a head has one decay
    y: Tensor = selective_state_update(
        state,
        x,
        dt[:, :, None].expand(-1, -1, width),
        layer.a[:, None, None].expand(-1, width, entries),
        b,
        c,
        D=layer.skip[:, None].expand(heads, width),
        dt_bias=layer.dt_bias[:, None].expand(heads, width),
        dt_softplus=True,
        state_batch_indices=slots,
    )
    return y


def refuses(request: Request, config: Mamba2Config) -> str:
    """Why mamba-ssm's kernels cannot serve the request; "" if they can."""
    if request.dtype not in DTYPES:
        return "it computes in float32, float16 and bfloat16 only"
    if request.phase == "decode":
        return ""
    if request.device == "cuda" and request.dtype == torch.float32:
        return "its matrix products round float32 to TF32"
    if config.chunk_size not in CHUNKS:
        return f"its chunk_size is one of {list(CHUNKS)}; here it is {config.chunk_size}"
    if config.d_state > 256:
        return f"it has at most 256 state entries; here they are {config.d_state}"
    return ""


@lru_cache(maxsize=1)
def _combined() -> Callable[..., Any]:
    """Upstream's scan, with the settings that were found for this GPU."""
    module = import_module("mamba_ssm.ops.triton.ssd_combined")
    tuning.use("mamba_ssm")
    function: Callable[..., Any] = module.mamba_chunk_scan_combined
    return function
