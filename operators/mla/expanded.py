"""The expanded form, for many queries at once: keys and values of every head are made from the
latents, then attention is the usual one.

Legend: B rows, T tokens, Q queries, S keys, N heads, D width without rotation, P width with
rotation, R latent width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.operators.attention import sdpa


def attend(q: Tensor, cache: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """The same as `reference.attend`."""
    keys, values = expand(q, cache, weight)
    return sdpa.attend(q, keys, values, mask)


def attend_causal(q: Tensor, cache: Tensor, weight: Tensor) -> Tensor:
    """The same as `reference.attend_causal`, by torch's kernels."""
    keys, values = expand(q, cache, weight)
    # torch's fastest CUDA kernels want values as wide as keys
    padded = widen(values, keys) if q.is_cuda else values
    return sdpa.attend_causal(q, keys, padded)[..., : values.shape[-1]]


def expand(q: Tensor, cache: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [B,S,N,D+P] and values [B,S,N,V] for queries q[...,D+P], from cache[B,S,R+P] and
    weight[N,D+V,R]."""
    heads, width, rank = weight.shape
    turned = cache.shape[-1] - rank
    plain = q.shape[-1] - turned
    latent, rotated = cache.split([rank, turned], dim=-1)
    both = F.linear(latent, weight.flatten(0, 1)).unflatten(-1, (heads, width))
    keys, values = both.split([plain, width - plain], dim=-1)
    shared = rotated[:, :, None].expand(-1, -1, heads, -1)
    return torch.cat([keys, shared.to(keys.dtype)], dim=-1), values


def widen(values: Tensor, keys: Tensor) -> Tensor:
    """Values with zeros at the end that make them as wide as the keys."""
    return F.pad(values, (0, max(0, keys.shape[-1] - values.shape[-1])))
