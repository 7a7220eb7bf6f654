"""How transformers describes a batch, brought to `SequenceInfo`.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.operators.sequence import SequenceInfo

IGNORED = -100


def layout(
    tokens: Tensor,
    attention_mask: Tensor | None,
    *,
    position_ids: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> SequenceInfo | None:
    """Padding and packed segments of tokens[B,T] or [B,T,H]; None: one full segment per row.

    Padding is where attention_mask[B,T] is 0. A segment begins where `cu_seq_lens` says so
    (one row), else where `seq_idx`[B,T] changes, else where `position_ids`[B,T] do not go up
    by one: what transformers' padding-free collator makes.
    """
    real = None if attention_mask is None else real_tokens(attention_mask, tokens)
    begins = _begins(tokens, position_ids, cu_seq_lens, seq_idx)
    if begins is None:
        return None if real is None or bool(real.all()) else SequenceInfo(real.long())
    if real is not None:
        # positions at padding mean nothing: only a break between real neighbours counts
        begins[:, 1:] &= real[:, 1:] & real[:, :-1]
    segments = 1 + begins.long().cumsum(1)
    if real is not None:
        segments = segments * real
    return None if bool((segments == 1).all()) else SequenceInfo(segments)


def real_tokens(attention_mask: Tensor, tokens: Tensor) -> Tensor:
    """True at the tokens that are no padding, [B,T]; raises ValueError for another shape."""
    if attention_mask.shape != tokens.shape[:2]:
        raise ValueError(
            "attention_mask must have one entry per token, shape"
            f" {tuple(tokens.shape[:2])}; got {tuple(attention_mask.shape)}"
        )
    return attention_mask.to(tokens.device).bool()


def targets(labels: Tensor, seq: SequenceInfo | None) -> Tensor:
    """labels[B,T], ignored where no token of the same segment lies before: padded and packed
    batches then have the loss of single sequences."""
    if seq is None:
        return labels
    follows = torch.zeros_like(seq.segments, dtype=torch.bool)
    follows[:, 1:] = (seq.segments[:, 1:] == seq.segments[:, :-1]) & (seq.segments[:, 1:] > 0)
    return labels.masked_fill(~follows, IGNORED)


def kept(x: Tensor, logits_to_keep: int | Tensor, seq: SequenceInfo | None = None) -> Tensor:
    """The columns of x[B,T,...] whose logits are asked for: the last so many (0: all), or
    those listed. The last one is each row's last real token, wherever padding lies."""
    if isinstance(logits_to_keep, Tensor):
        return x[:, logits_to_keep]
    if logits_to_keep == 1 and seq is not None:
        column = torch.arange(x.shape[1], device=x.device)
        last = torch.where(seq.segments > 0, column, 0).amax(1)
        return x[torch.arange(len(x), device=x.device), last][:, None]
    return x[:, -logits_to_keep:] if logits_to_keep else x


def to_the_left(tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The real tokens of tokens[B,T,...] moved to the left, their number [B], and where each
    came from [B,T]."""
    order = (~real).long().argsort(dim=1, stable=True)
    row = torch.arange(len(order), device=order.device)[:, None]
    return tokens[row, order], real.sum(1), order


def _begins(
    tokens: Tensor,
    position_ids: Tensor | None,
    cu_seq_lens: Tensor | None,
    seq_idx: Tensor | None,
) -> Tensor | None:
    """True [B,T] where a segment begins, other than at a row's begin; None: nothing says."""
    batch, length = tokens.shape[:2]
    begins = torch.zeros(batch, length, dtype=torch.bool, device=tokens.device)
    if cu_seq_lens is not None:
        if batch != 1:
            raise ValueError(f"cu_seq_lens_q describes a batch of one row; got {batch} rows")
        ends = cu_seq_lens.long()[1:]
        begins[0, ends[ends < length]] = True
    elif seq_idx is not None:
        begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    elif position_ids is not None:
        begins[:, 1:] = position_ids.view(-1, length).diff() != 1
    else:
        return None
    return begins
