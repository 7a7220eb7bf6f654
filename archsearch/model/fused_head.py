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


def step_logits(head: nn.Module, h: Tensor) -> Tensor:
    """fp32 logits[B,V] of the residual stream h[B,H]; fused where a layer's step would be."""
    preferred = HEAD in PREFERRED
    wanted = forced(HEAD) or ("triton" if preferred else "")
    # something may stand in the head's place
    if not isinstance(head, LMHead) or wanted != "triton":
        logits: Tensor = head(h)
        return logits
    request = Request(HEAD, "decode", h.device.type, h.dtype)

    def refusal(backend: str, request: Request) -> str:
        if backend != "triton":
            return ""
        if torch.is_grad_enabled():
            return "it computes no gradients"
        return refuses_modules(head, request)

    offered = ("triton", "torch") if preferred else ("torch", "triton")
    if choose(offered, request, refusal) != "triton":
        return head(h)
    # its kernels need triton to be imported
    from archsearch.operators.fused import products

    inverse = head.inverse_norms() if head.head_norm else None
    return products.logits(h.contiguous(), head.proj.weight, products.Norm.of(head.norm), inverse)
