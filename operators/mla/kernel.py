"""Adapter to flash-attn, for the expanded form."""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.attention import kernel
from archsearch.operators.backends import Request
from archsearch.operators.mla.config import MLAConfig
from archsearch.operators.mla.expanded import expand
from archsearch.operators.mla.expanded import widen


def attend_causal(q: Tensor, cache: Tensor, weight: Tensor) -> Tensor:
    """The same as `reference.attend_causal`."""
    keys, values = expand(q, cache, weight)
    return kernel.attend_causal(q, keys, widen(values, keys))[..., : values.shape[-1]]


def refuses(request: Request, config: MLAConfig) -> str:
    """Why flash-attn cannot serve the request; "" if it can."""
    if config.v_head_dim > config.qk_head_dim:
        return "its values cannot be wider than its keys"
    return kernel.refuses(request, config.qk_head_dim)
