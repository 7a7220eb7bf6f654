"""What adapters to flash-linear-attention share: importing its kernels with the settings kept
for this GPU, and the requests that all of them refuse."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from archsearch.operators.backends import Request
from archsearch.operators.backends import interpreting
from archsearch.operators.backends import is_hopper
from archsearch.operators.backends import triton_version
from archsearch.operators.common import tuning

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WRONG_SINCE, RIGHT_SINCE = (3, 4, 0), (3, 7, 1)


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
