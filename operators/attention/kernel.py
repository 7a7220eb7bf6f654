"""Adapters to flash-attn, whose layout [B,T,N,D] is ours.

Legend: B rows, N heads, G key/value heads, T tokens, S slots, D head width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.base import Phase

# what upstream's kernels are compiled for; a build may hold fewer
DTYPES = (torch.bfloat16, torch.float16)
WIDTH_STEP = 8
WIDEST = 256


def attend_causal(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Each query sees itself and what is before it (the last `window` keys, itself included):
    q[B,T,N,D], k and v[B,T,G,D] to [B,T,N,D]; differentiable."""
    from flash_attn import flash_attn_func

    band = (-1, -1) if window is None else (window - 1, 0)
    y: Tensor = flash_attn_func(q, k, v, causal=True, window_size=band)
    return y


def attend_tail(q: Tensor, keys: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """The first `count`[B] slots of keys and values[B,S,G,D] hold each row's tokens, the last
    of which ask: q[B,T,N,D] to [B,T,N,D], every query seeing itself and what is before it."""
    from flash_attn import flash_attn_with_kvcache

    y: Tensor = flash_attn_with_kvcache(
        q, keys, values, cache_seqlens=count.to(torch.int32), causal=True
    )
    return y


def attend_cache(q: Tensor, keys: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """One query per row, q[B,N,D], over the first `count`[B] slots of keys and
    values[B,S,G,D]; returns [B,N,D]."""
    return attend_tail(q[:, None], keys, values, count)[:, 0]


def refuses(request: Request, head_dim: int) -> str:
    """Why flash-attn cannot serve the request at this head width; "" if it can."""
    if request.dtype not in DTYPES:
        return "it computes in 16-bit types only"
    if head_dim % WIDTH_STEP or head_dim > WIDEST:
        return (
            f"it needs a head width that is a multiple of {WIDTH_STEP} and at most {WIDEST};"
            f" here it is {head_dim}"
        )
    return _lacks(torch.cuda.current_device(), request.phase, request.dtype, head_dim)


@lru_cache(maxsize=64)
def _lacks(gpu: int, phase: Phase, dtype: torch.dtype, head_dim: int) -> str:
    """What the installed build was compiled without for this GPU, found by one call on two
    tokens."""
    device, backward = torch.device("cuda", gpu), phase == "train"
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(1, 2, 1, head_dim, dtype=dtype, device=device, requires_grad=backward)
        try:
            if phase == "decode":
                attend_cache(x[:, 0], x, x, torch.ones(1, device=device))
            else:
                y = attend_causal(x, x, x)
                if backward:
                    torch.autograd.grad(y, x, torch.ones_like(y))
        except torch.OutOfMemoryError:
            # says nothing about the build
            raise
        except RuntimeError as error:
            kind = str(dtype).removeprefix("torch.")
            reason = str(error).splitlines()[0]
            return f"the installed build lacks head width {head_dim} in {kind} ({reason})"
    return ""
