"""Prompts as they are given, checked and brought to one form. Legend: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# token ids [B,T], or a list of tokens per row
Ids = Tensor | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids [B,T], of which the first `lengths[b]` of row b are real and the others 0."""

    ids: Tensor
    lengths: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)


def read(ids: Ids, lengths: Sequence[int] | Tensor | None, vocab_size: int) -> Prompts:
    """Check prompts of any lengths. Raises ValueError for no prompt, an empty one, or a token
    outside the vocabulary."""
    if not isinstance(ids, Tensor):
        if lengths is not None:
            raise ValueError("lengths belong to a tensor of ids; lists of tokens know theirs")
        ids, lengths = _pad(ids)
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        shape = list(ids.shape)
        raise ValueError(f"prompts must be integers [rows, tokens]; got {ids.dtype} {shape}")
    batch, width = ids.shape
    if lengths is None:
        counts = [width] * batch
    else:
        counts = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
    if len(counts) != batch:
        raise ValueError(f"there must be one length per prompt; got {len(counts)} and {batch}")
    if not counts or min(counts) < 1:
        raise ValueError("every prompt must have at least one token; got an empty one")
    if max(counts) > width:
        raise ValueError(f"a prompt of {max(counts)} tokens cannot lie in {width} columns")
    if min(counts) < width:
        real = torch.arange(width) < torch.tensor(counts)[:, None]
        ids = ids.masked_fill(~real.to(ids.device), 0)
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"tokens must lie in 0..{vocab_size - 1}; got {low}..{high}")
    return Prompts(ids.long(), counts)


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    lengths = [len(row) for row in rows]
    ids = torch.zeros(len(rows), max(lengths, default=0), dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.as_tensor(tokens, dtype=torch.long)
    return ids, lengths
