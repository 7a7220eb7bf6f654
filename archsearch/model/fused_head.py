"""The head of a decode step in one launch: final norm, logits, division by the row norms.

Legend: B rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn

from archsearch.model.head import LMHead
from archsearch.operators.backends import Request
from archsearch.operators.backends import choose
from archsearch.operators.backends import forced
from archsearch.operators.fused.dispatch import refuses_modules
from archsearch.operators.fused.table import HEAD
from archsearch.operators.fused.table import PREFERRED

# in order of preference
BACKENDS = ("triton", "torch") if HEAD in PREFERRED else ("torch", "triton")


def step_logits(head: nn.Module, h: Tensor) -> Tensor:
    """fp32 logits[B,V] of the residual stream h[B,H]; fused where a layer's step would be."""
    # something else may stand in the head's place
    if type(head) is not LMHead or (forced(HEAD) or BACKENDS[0]) != "triton":
        logits: Tensor = head(h)
        return logits
    request = Request(HEAD, "decode", h.device.type, h.dtype)

    def refusal(backend: str, request: Request) -> str:
        if backend == "triton" and torch.is_grad_enabled():
            return "it computes no gradients"
        return refuses_head(head, backend, request)

    if choose(BACKENDS, request, refusal) != "triton":
        return head(h)
    # its kernels need triton to be imported
    from archsearch.operators.fused import products

    inverse = head.inverse_norms() if head.head_norm else None
    return products.logits(h.contiguous(), head.proj.weight, products.Norm.of(head.norm), inverse)


def refuses_head(head: LMHead, backend: str, request: Request) -> str:
    """Why `backend`, though installed, cannot serve the head's decode step; "" if it can."""
    if backend != "triton":
        return ""
    # a fused step does not call it
    if head._forward_hooks or head._forward_pre_hooks:
        return "it has hooks"
    return refuses_modules(head, request)
