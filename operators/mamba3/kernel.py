"""Adapters to the Triton kernels of mamba-ssm: the scan both ways, and one step in place.

Its TileLang (MIMO) and CuTe (step) kernels are not used: they need packages of their own.

Legend: B rows, T tokens, N heads, G groups, P head width, K state width, S angles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.common import tuning
from archsearch.operators.mamba3.config import Mamba3Config
from archsearch.operators.mamba3.reference import Carried
from archsearch.operators.mamba3.reference import Tokens

KERNELS = "mamba_ssm.ops.triton.mamba3"


def scan(tokens: Tokens, past: Carried | None, *, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `reference.scan`; without a `past` the state after it is empty tensors."""
    heads = tokens.v.shape[-2]
    states = None if past is None else (past.angle, past.ssm.float(), past.k, past.v)
    out = _combined()(
        Q=tokens.c,
        K=tokens.b,
        V=tokens.v,
        ADT=tokens.log_decay.transpose(1, 2),
        DT=tokens.dt.transpose(1, 2),
        Trap=tokens.trap.transpose(1, 2),
        Q_bias=tokens.c_bias.float(),
        K_bias=tokens.b_bias.float(),
        Angles=tokens.angle[:, :, None].expand(-1, -1, heads, -1),
        D=tokens.skip.float(),
        Z=tokens.gate,
        Input_States=states,
        chunk_size=chunk,
        return_final_states=past is not None,
    )
    if past is None:
        return out, out.new_empty(0), out.new_empty(0)
    # upstream rounds the angles to 16 bits, which every later token would inherit
    return out[0], out[2], _last_angle(tokens, past.angle)


def step_(now: Tokens, past: Carried) -> tuple[Tensor, Tensor]:
    """One token: y[B,N,P] and its k[B,N,K]; past.ssm and past.angle move on in place."""
    batch, heads, width = now.v.shape
    y, k = torch.empty_like(now.v), torch.empty_like(past.k)
    angle = now.angle[:, None].expand(-1, heads, -1)
    skip, gate = now.skip.float(), now.gate
    tokens = (now.c, now.b, now.v, now.log_decay, now.dt, now.trap)
    layer = (now.c_bias.float(), now.b_bias.float(), angle, skip)
    states = (past.angle, past.ssm, past.k, past.v)
    # the new k has a place of its own: the kernel writes it before it reads the old one
    results = (y, past.angle, past.ssm, k)
    strides = [
        *(stride for x in (*tokens, *layer) for stride in x.stride()),
        *((0, 0, 0) if gate is None else gate.stride()),
        *(stride for x in (*states, *results) for stride in x.stride()),
    ]
    _step_kernel()[(heads, batch)](
        *(*tokens, *layer, gate, *states, *results),
        *strides,
        now.c.shape[1],
        HEADDIM_QK=k.shape[-1],
        HEADDIM_V=width,
        HEADDIM_ANGLES=angle.shape[-1],
        HAS_D=True,
        HAS_Z=gate is not None,
        num_warps=4,
        num_stages=1,
    )
    return y, k


def refuses(request: Request, config: Mamba3Config) -> str:
    """Why mamba-ssm's kernels cannot serve the request; "" if they can."""
    if request.device != "cuda":
        return "its kernels contain PTX"
    if request.dtype != torch.bfloat16:
        return "it computes in bfloat16 only"
    for name in ("d_state", "head_dim", "chunk_size"):
        value = getattr(config, name)
        if value < 16 or value & (value - 1):
            return f"it needs a {name} that is a power of two and at least 16; here it is {value}"
    return _lacks()


@lru_cache(maxsize=1)
def _lacks() -> str:
    """What the installed package lacks."""
    try:
        import_module(f"{KERNELS}.mamba3_siso_combined")
        import_module(f"{KERNELS}.mamba3_siso_step")
    except ImportError as error:
        return f"the installed mamba-ssm has no Mamba-3 kernels ({error})"
    return ""


@lru_cache(maxsize=1)
def _combined() -> Callable[..., Any]:
    """Upstream's scan. It would try up to 81 settings of each kernel, which takes a quarter of
    an hour to compile; four are left."""
    function: Callable[..., Any] = import_module(
        f"{KERNELS}.mamba3_siso_combined"
    ).mamba3_siso_combined
    for name, tuner in tuning.autotuners("mamba_ssm"):
        if name.startswith(KERNELS):
            tuner.configs = [setting for setting in tuner.configs if _is_usual(setting)]
    tuning.use("mamba_ssm")
    return function


def _is_usual(setting: Any) -> bool:
    return (
        setting.num_warps in (4, 8)
        and setting.num_stages in (1, 2)
        and setting.maxnreg is None
        and setting.kwargs.get("CHUNK_SIZE", 64) == 64
    )


@lru_cache(maxsize=1)
def _step_kernel() -> Any:
    """Upstream's kernel without its autotuner, whose trials would move the state on."""
    return import_module(f"{KERNELS}.mamba3_siso_step").mamba3_siso_step_kernel.fn


def _last_angle(tokens: Tokens, before: Tensor) -> Tensor:
    """The angles [B,N,S] after the last token."""
    # in 64 bits, as in `chunked.angles`: many turns are summed
    rate = torch.tanh(tokens.angle.float()) * math.pi
    turned = tokens.dt.double().transpose(1, 2) @ rate.double()
    return (before + turned).remainder(2 * math.pi).float()
