"""The head of a decode step in one launch: final norm, logits, division by the row norms.

Legend: B rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.model.head import LMHead
from archsearch.operators.backends import Request
from archsearch.operators.backends import choose
from archsearch.operators.backends import forced
from archsearch.operators.fused.dispatch import refuses_modules
from archsearch.operators.fused.table import PREFERRED

HEAD = "head"


def step_logits(head: LMHead, h: Tensor) -> Tensor:
    """fp32 logits[B,V] of the residual stream h[B,H]; fused where a layer's step would be."""
    preferred = HEAD in PREFERRED
    if not preferred and forced(HEAD) != "triton":
        return head(h)
    request = Request(HEAD, "decode", h.device.type, h.dtype)

    def refusal(backend: str, request: Request) -> str:
        if backend != "triton":
            return ""
        return (
            "it computes no gradients"
            if torch.is_grad_enabled()
            else refuses_modules(head, request)
        )

    offered = ("triton", "torch") if preferred else ("torch", "triton")
    if choose(offered, request, refusal) != "triton":
        return head(h)
    # its kernels need triton to be imported
    from archsearch.operators.fused.products import Norm
    from archsearch.operators.fused.products import logits

    inverse = head.inverse_norms() if head.head_norm else None
    return logits(h.contiguous(), head.proj.weight, Norm.of(head.norm), inverse)
