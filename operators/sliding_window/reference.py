"""Sliding-window attention as the formula says it: full attention under a band mask."""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.operators.attention.reference import attend


def attend_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of q[B,N,T,D] over the last `window` of k, v[B,G,T,D], itself included."""
    index = torch.arange(q.shape[2], device=q.device)
    distance = index[:, None] - index
    return attend(q, k, v, (distance >= 0) & (distance < window))
