"""Whether a layer's decode step runs fused: decided like every choice of a backend.

Legend: B rows, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch import nn

from archsearch.operators.backends import Request
from archsearch.operators.backends import choose
from archsearch.operators.backends import forced
from archsearch.operators.backends import interpreting
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.table import STEPS
from archsearch.operators.fused.table import decode_backends
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# (mixer, pre-norm, h[B,H], state, position[B], active[B]) -> h[B,H]
Step = Callable[[Mixer, RMSNorm, Tensor, State, Tensor, Tensor], Tensor]


def find_step(mixer: Mixer, norm: RMSNorm, h: Tensor) -> Step | None:
    """The fused step of a layer, with its pre-norm, for h[B,H]; None where another backend serves
    it.

    Raises ValueError where the fused step is forced and cannot serve the layer.
    """
    name = mixer.operator
    offered = decode_backends(name, mixer.backends, len(h))
    # whoever forces another backend gets the plain step
    if name not in STEPS or (forced(name) or offered[0]) != "triton":
        return None
    request = Request(name, "decode", h.device.type, h.dtype)

    def refusal(backend: str, request: Request) -> str:
        if backend == "triton" and torch.is_grad_enabled():
            return "it computes no gradients"
        if backend == "triton" and not _is_plain(norm):
            return "its pre-norm is not a plain one"
        return refuses_step(mixer, backend, request)

    if choose(offered, request, refusal) != "triton":
        return None
    step: Step = _module(name).step
    return step


def refuses_step(mixer: Mixer, backend: str, request: Request) -> str:
    """Why `backend`, though installed, cannot serve a decode step of this layer; "" if it can."""
    return refuses(mixer, request) if backend == "triton" else mixer.refuses(backend, request)


def refuses(mixer: Mixer, request: Request) -> str:
    """Why the kernels, though Triton is installed, cannot serve this layer; "" if they can."""
    reason: str = refuses_modules(mixer, request) or _module(request.operator).refuses(mixer)
    return reason


def refuses_modules(owner: nn.Module, request: Request) -> str:
    """Why the kernels cannot read the weights of `owner` and its parts; "" if they can."""
    if request.dtype not in DTYPES:
        return "it computes in float32, float16 and bfloat16 only"
    if request.dtype == torch.bfloat16 and interpreting():
        return "Triton's interpreter multiplies bfloat16 wrongly"
    for name, module in owner.named_modules():
        # an adapter, for example, adds to what the weights alone give
        if module is not owner and not _is_plain(module):
            return f"its {name} is a {type(module).__name__}, whose weights alone do not tell all"
        for weight in module._parameters.values():
            if weight is not None and (
                weight.dtype != request.dtype or not weight.is_contiguous()
            ):
                kind = str(weight.dtype).removeprefix("torch.")
                return f"its {name or 'own'} weights are {kind}, or not contiguous"
    return ""


def _is_plain(module: nn.Module) -> bool:
    own = type(module).__module__.startswith("archsearch.operators.")
    own = own or type(module) in (nn.Linear, nn.Sequential, nn.GroupNorm)
    return own and not module._forward_hooks and not module._forward_pre_hooks


@cache
def _module(operator: str) -> ModuleType:
    # its kernels need triton to be imported
    return import_module(f"archsearch.operators.{operator}.step")
