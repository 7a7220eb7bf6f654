"""What adapters to flash-linear-attention share: importing its kernels with the settings kept
for this GPU, and the requests that all of them refuse."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.backends import interpreting
from archsearch.operators.backends import is_hopper
from archsearch.operators.backends import triton_version
from archsearch.operators.common import tuning

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WRONG_SINCE, RIGHT_SINCE = (3, 4, 0), (3, 7, 1)
# tensor cores multiply no fewer
MIN_WIDTH = 16
# columns of the state that one program of a decode step holds
BLOCK, DELTA_BLOCK = 32, 8


@cache
def prepared(module: str) -> ModuleType:
    """Import e.g. "fla.ops.gla" and give its kernels the settings found for this GPU."""
    kernels = import_module(module)
    tuning.use("fla")
    return kernels


def refuses_dtype(request: Request) -> str:
    """Why the kernels cannot compute in the request's dtype; "" if they can."""
    if request.dtype not in DTYPES:
        return "it computes in float32, float16 and bfloat16 only"
    if request.dtype == torch.bfloat16 and interpreting():
        return "Triton's interpreter multiplies bfloat16 wrongly"
    return ""


def refuses_gated_backward(request: Request) -> str:
    """Why a chunked kernel with a scalar gate cannot give gradients; "" if it can."""
    if request.phase != "train" or request.device != "cuda" or not is_hopper():
        return ""
    if WRONG_SINCE <= triton_version() < RIGHT_SINCE:
        return (
            "its gated backward pass gives wrong results on Hopper GPUs with Triton 3.4.0 to"
            " 3.7.0 (flash-linear-attention issue 640)"
        )
    return ""


def refuses_chunks(request: Request) -> str:
    """Why a chunked kernel, or the step that goes with it, cannot serve the request."""
    reason = refuses_dtype(request)
    exact = request.dtype == torch.float32 and request.device == "cuda"
    if not reason and exact and request.phase != "decode":
        return "its matrix products round float32 to TF32"
    return reason


def refuses_narrow(request: Request, *widths: int) -> str:
    """Why a chunked kernel cannot serve heads of these widths; "" if it can."""
    if request.phase == "decode" or min(widths) >= MIN_WIDTH:
        return ""
    return f"its heads are at least {MIN_WIDTH} wide; here {' and '.join(map(str, widths))}"


def launch_in_place(kernel: Any, state: Tensor, inputs: dict[str, Any], v: Tensor) -> Tensor:
    """Output o[B,N,V] of a recurrent kernel for one token; state[B,N,K,V] moves on in place.

    Upstream's own launch writes the state elsewhere and has to be copied. A program reads its
    tile of the state whole before it writes it, so that both may be the same memory, as long
    as the kernel runs once: so the autotuner is passed by.
    """
    assert state.is_contiguous(), "the state must be contiguous to be updated in place"
    batch, heads, keys, values = state.shape
    rows, columns = power_of_2(keys), min(BLOCK, power_of_2(values))
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    with torch.cuda.device(state.device):
        # heuristics around the autotuner around the kernel
        kernel.fn.fn[(-(-values // columns) * batch * heads,)](
            **_contiguous(inputs),
            v=v.contiguous(),
            o=o,
            h0=state,
            ht=state,
            cu_seqlens=None,
            T=1,
            B=batch,
            H=heads,
            K=keys,
            V=values,
            BK=rows,
            BV=columns,
            REVERSE=False,
            USE_INITIAL_STATE=True,
            STORE_FINAL_STATE=True,
            IS_VARLEN=False,
            num_warps=4 if rows * columns >= 1024 else 1,
        )
    return o


def launch_delta_in_place(
    state: Tensor,
    inputs: dict[str, Any],
    v: Tensor,
    *,
    writes: int = 1,
    allow_neg_eigval: bool = False,
) -> Tensor:
    """Output o, as large as v[B,N,V] or v[B,R,N,V], of the gated delta rule for one token that
    writes R times; state[B,N,K,V] moves on in place, as in `launch_in_place`. Of `inputs`, q and
    k[...,K] are raw, beta[...,N] and g[...,N] (if any) are logits, with A_log and dt_bias[N]."""
    assert state.is_contiguous(), "the state must be contiguous to be updated in place"
    module = prepared("fla.ops.gated_delta_rule.fused_recurrent")
    kernel = module.fused_recurrent_gated_delta_rule_fwd_kernel
    batch, heads, keys, values = state.shape
    columns = min(DELTA_BLOCK, power_of_2(values))
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    with torch.cuda.device(state.device):
        kernel[(-(-values // columns) * batch * heads,)](
            **_contiguous(inputs),
            v=v.contiguous(),
            gk=None,
            gv=None,
            o=o,
            h0=state,
            ht=state,
            cu_seqlens=None,
            scale=keys**-0.5,
            T=writes,
            H=inputs["q"].shape[-2],
            HV=heads,
            K=keys,
            V=values,
            BK=power_of_2(keys),
            BV=columns,
            IS_BETA_HEADWISE=True,
            USE_QK_L2NORM_IN_KERNEL=True,
            APPLY_BETA_SIGMOID=True,
            ALLOW_NEG_EIGVAL=allow_neg_eigval,
            STATE_V_FIRST=False,
            num_warps=1,
            num_stages=3,
        )
    return o


def power_of_2(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def linear_step_(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    by_key: Tensor | None = None,
    by_head: Tensor | None = None,
) -> Tensor:
    """One token of linear attention, its queries scaled: state[B,N,K,V] decays by the exponential
    of by_key[B,N,K] or by_head[B,N], gains k[B,N,K] v[B,N,V]^T and gives o[B,N,V] for q[B,N,K]."""
    gates = {
        "g": by_head,
        "gk": by_key,
        "g_gamma": None,
        "gv": None,
        "USE_G": by_head is not None,
        "USE_GK": by_key is not None,
        "USE_G_GAMMA": False,
        "USE_GV": False,
    }
    kernel = prepared("fla.ops.common.fused_recurrent").fused_recurrent_fwd_kernel
    inputs = {"q": q, "k": k, "scale": k.shape[-1] ** -0.5, **gates}
    return launch_in_place(kernel, state, inputs, v)


def _contiguous(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.contiguous() if isinstance(x, Tensor) else x for name, x in inputs.items()}
