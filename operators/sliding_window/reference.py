"""Sliding-window attention as the formula says it: full attention under a band mask."""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.attention.reference import attend_causal


def attend_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of q[B,T,N,D] over the last `window` of k, v[B,T,G,D], itself included."""
    return attend_causal(q, k, v, window)
