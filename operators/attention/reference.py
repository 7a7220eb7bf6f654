"""Softmax attention as the formula says it, in fp32: the truth that other forms are held to.

Legend: B rows, N heads, G key/value heads, Q queries, S keys, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for q[B,N,Q,D], k and v[B,G,S,D]; `mask`, broadcast to
    [B,1,Q,S], is true where a query sees a key. Returns [B,N,Q,D] in q's dtype."""
    groups = q.shape[1] // k.shape[1]
    keys = k.float().repeat_interleave(groups, dim=1)
    values = v.float().repeat_interleave(groups, dim=1)
    scores = q.float() @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
    return (weights @ values).to(q.dtype)
