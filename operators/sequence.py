"""How the tokens of x[B,T] lie: padding, packed segments and continued prompts.

Every layout is brought to one form before an operator sees it: rows R that hold one
segment each, padded on the right. So no operator needs a rule for left padding or packing.

Legend: B rows as given, T tokens as given, R rows of one segment, L longest segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Right-padded rows: `lengths`[R] real tokens (None: all), `starts`[R] the position of
    each row's first token (None: 0)."""

    lengths: Tensor | None = None
    starts: Tensor | None = None

    def mask(self, x: Tensor) -> Tensor | None:
        """True at the real tokens of x[R,L,...], as [R,L]; None if all are real."""
        if self.lengths is None:
            return None
        return torch.arange(x.shape[1], device=x.device) < self.lengths[:, None]

    def positions(self, x: Tensor) -> Tensor:
        """Position of each token of x[R,L,...], as [R,L], or [1,L] if all rows start at 0."""
        steps = torch.arange(x.shape[1], device=x.device)[None]
        return steps if self.starts is None else steps + self.starts[:, None]


@dataclass(frozen=True, eq=False)
class SequenceInfo:
    """Layout of a batch of tokens.

    `segments`[B,T] is 0 at padding and otherwise numbers the segments of a row from 1 on,
    each segment contiguous; `starts`[B] is the position of each row's first token (greater
    than 0 when a prompt continues a decode state). `full` says that there is no padding and
    one segment per row, which spares a look at the device.
    """

    segments: Tensor
    starts: Tensor | None = None
    full: bool = False

    @classmethod
    def padded(
        cls,
        lengths: Sequence[int] | Tensor,
        num_tokens: int,
        *,
        side: str = "right",
        starts: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> SequenceInfo:
        """Rows of `lengths` real tokens padded to `num_tokens` on the "left" or "right"."""
        if side not in ("left", "right"):
            raise ValueError(f"padding side must be 'left' or 'right'; got {side!r}")
        sizes = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
        if not sizes or min(sizes) < 1 or max(sizes) > num_tokens:
            raise ValueError(f"lengths must lie between 1 and {num_tokens}; got {sizes}")
        if min(sizes) == num_tokens:
            segments = torch.ones(len(sizes), num_tokens, dtype=torch.long, device=device)
            return cls(segments, starts, full=True)
        count = torch.as_tensor(lengths, device=device)
        index = torch.arange(num_tokens, device=device)
        real = index < count[:, None] if side == "right" else index >= num_tokens - count[:, None]
        return cls(real.long(), starts)

    @classmethod
    def packed(
        cls, lengths: Sequence[Sequence[int]], num_tokens: int, device: torch.device | str = "cpu"
    ) -> SequenceInfo:
        """Row b holds segments of `lengths[b]` tokens one after another, then padding."""
        segments = torch.zeros(len(lengths), num_tokens, dtype=torch.long)
        for row, sizes in enumerate(lengths):
            if not sizes or min(sizes) < 1 or sum(sizes) > num_tokens:
                raise ValueError(
                    f"segments of row {row} must be positive and fit {num_tokens} tokens;"
                    f" got {list(sizes)}"
                )
            ids = torch.arange(1, len(sizes) + 1).repeat_interleave(torch.tensor(sizes))
            segments[row, : len(ids)] = ids
        return cls(segments.to(device))

    @cached_property
    def is_packed(self) -> bool:
        """Whether any row holds more than one segment."""
        return not self.full and bool((self.segments > 1).any())

    @cached_property
    def rows(self) -> Rows:
        """The layout after `to_rows`."""
        lengths, starts, _ = self._plan
        return Rows(lengths, starts)

    def to_rows(self, x: Tensor) -> Tensor:
        """Bring x[B,T,...] to x[R,L,...]; padding becomes zero."""
        lengths, _, index = self._plan
        if index is None:
            mask = Rows(lengths).mask(x)
            return x if mask is None else _zero_padding(x, mask)
        flat = x.flatten(0, 1)
        flat = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
        return flat[index]

    def from_rows(self, y: Tensor) -> Tensor:
        """Bring y[R,L,...] back to y[B,T,...]; padding becomes zero."""
        lengths, _, index = self._plan
        if index is None:
            mask = Rows(lengths).mask(y)
            return y if mask is None else _zero_padding(y, mask)
        num_rows, num_tokens = self.segments.shape
        flat = y.new_zeros(num_rows * num_tokens + 1, *y.shape[2:])
        flat = flat.index_put((index.flatten(),), y.flatten(0, 1))
        return flat[:-1].unflatten(0, (num_rows, num_tokens))

    @cached_property
    def _plan(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(lengths[R] or None, starts[R] or None, index[R,L] into the flat tokens or None).

        Padding points at the extra entry B*T; no index means that x already has the form.
        """
        if self.full:
            return None, self.starts, None
        num_rows, num_tokens = self.segments.shape
        device = self.segments.device
        real = self.segments > 0
        if bool(real.all()) and not self.is_packed:
            return None, self.starts, None
        if not self.is_packed:
            lengths = real.sum(1)
            steps = torch.arange(num_tokens, device=device)
            if bool((real == (steps < lengths[:, None])).all()):
                return lengths, self.starts, None
        where, column = real.nonzero(as_tuple=True)
        segment = self.segments[where, column]
        begins = torch.ones_like(where, dtype=torch.bool)
        begins[1:] = (where[1:] != where[:-1]) | (segment[1:] != segment[:-1])
        row = begins.long().cumsum(0) - 1
        lengths = torch.bincount(row)
        first = lengths.cumsum(0) - lengths
        offset = torch.arange(len(row), device=device) - first[row]
        index = torch.full(
            (len(lengths), int(lengths.max())), num_rows * num_tokens, device=device
        )
        index[row, offset] = where * num_tokens + column
        starts = None
        if self.starts is not None:
            opening = where[begins]
            is_first = torch.ones_like(opening, dtype=torch.bool)
            is_first[1:] = opening[1:] != opening[:-1]
            starts = torch.where(is_first, self.starts[opening], 0)
        return lengths, starts, index


def _zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - 2)), 0)
