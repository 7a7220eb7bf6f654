"""Sampling as a CUDA graph holds it: settings in tensors, no wait, no shape that depends on a
value, and no sort of the vocabulary where a few candidates will do.

Chance is one number per token, a hash of (seed, row, position): what is drawn depends on
nothing else, on no device and on no way of cutting a text into calls.

Legend: B rows, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from archsearch.generate.sampling import Sampling

# greedy: the most likely token; open: of all, nothing is cut; narrow: of the CANDIDATES most
# likely ones, where these are sure to hold what is not cut; whole: of the sorted vocabulary
Way = Literal["greedy", "open", "narrow", "whole"]
CANDIDATES = 1024
# tokens whose weights are summed first where the whole vocabulary is searched
BLOCK = 512
# so much weighs the most likely token; a million of them fit 64 bits
UNIT = 2.0**43


class Knobs(NamedTuple):
    """Settings of each row, all [B,1]; top_k 0 keeps everything."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    @classmethod
    def new(cls, batch: int, device: torch.device) -> Knobs:
        """Memory for the settings of `batch` rows."""
        ones = torch.ones(batch, 1, dtype=torch.float64, device=device)
        return cls(ones, torch.zeros_like(ones, dtype=torch.long), ones.clone())

    def set(self, sampling: Sampling) -> None:
        """Give all rows the same settings."""
        for knob, value in zip(
            self, (sampling.temperature, sampling.top_k, sampling.top_p), strict=True
        ):
            knob.fill_(value)


class Draw(NamedTuple):
    """Tokens [B], the largest logits [B] (NaN where any is), and whether the tokens are
    `sure`[B] to be right (None: all are)."""

    token: Tensor
    largest: Tensor
    sure: Tensor | None = None


def way(sampling: Sampling, vocab_size: int) -> Way:
    """The cheapest exact way to draw."""
    if sampling.temperature == 0:
        return "greedy"
    if sampling.top_p == 1 and not 0 < sampling.top_k < vocab_size:
        return "open"
    return "narrow" if vocab_size > CANDIDATES > sampling.top_k else "whole"


def draw(how: Way, logits: Tensor, knobs: Knobs, chance: Tensor) -> Draw:
    """Tokens drawn from fp32 logits[B,V] by chance[B,1], fp64 numbers in [0, 1)."""
    if how == "greedy":
        largest, token = logits.max(-1)
        return Draw(token, largest)
    if how == "open":
        return _from_all(logits, knobs, chance)
    return _from_best(logits, knobs, chance, CANDIDATES if how == "narrow" else logits.shape[1])


def chances(seed: int, positions: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1), fp64 [B,count], for each row's next `count` positions from
    positions[B] on: equal (seed, row, position), equal number."""
    rows = np.arange(len(positions), dtype=np.uint64)
    steps: NDArray[np.uint64] = np.add.outer(
        np.array(positions, np.uint64), np.arange(count, dtype=np.uint64)
    )
    key = _mix(_mix(np.array([seed % 2**64], np.uint64)) + rows * _GOLDEN)
    bits = _mix(key[:, None] + steps * _GOLDEN)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64: 64 bits of which each depends on all of x's."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _from_all(logits: Tensor, knobs: Knobs, chance: Tensor) -> Draw:
    """One token of the whole vocabulary: its block first, then the place within."""
    largest = logits.amax(-1, keepdim=True)
    weights = _weights(logits, largest, knobs)
    blocks = F.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(-1)
    upto = sums.cumsum(-1)
    target = (chance * upto[:, -1:]).long()
    block = _find(upto, target)
    target = target - (upto.gather(1, block) - sums.gather(1, block))
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    token = block * BLOCK + _find(inside.cumsum(-1), target)
    # weights that are NaN may lead into the padding
    token = token.clamp(max=logits.shape[1] - 1)
    return Draw(token[:, 0], largest[:, 0])


def _from_best(logits: Tensor, knobs: Knobs, chance: Tensor, width: int) -> Draw:
    """One token of the kept ones among the `width` most likely, most likely first."""
    vocab = logits.shape[1]
    ordered, index = _most_likely(logits, width)
    weights = _weights(ordered, ordered[:, :1], knobs)
    limited = (knobs.top_k > 0) & (knobs.top_k < vocab)
    floor = ordered.gather(1, (knobs.top_k - 1).clamp(0, width - 1))
    weights = weights.masked_fill(limited & (ordered < floor), 0)
    upto = weights.cumsum(-1)
    total = upto[:, -1:]
    if width < vocab:
        every = _weights(logits, ordered[:, :1], knobs).sum(-1, keepdim=True)
        total = torch.where(limited, total, every)
    kept = (upto - weights < knobs.top_p * total) & (weights > 0)
    upto = weights.masked_fill(~kept, 0).cumsum(-1)
    token = index.gather(1, _find(upto, (chance * upto[:, -1:]).long()))[:, 0]
    if width == vocab:
        return Draw(token, ordered[:, 0])
    # as likely a token as the last candidate may have been left out
    least = ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
    sure = torch.where(limited, floor, least) > ordered[:, -1:]
    return Draw(token, ordered[:, 0], sure[:, 0])


def _most_likely(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` largest of logits[B,V] and their tokens, largest first; of equal ones the
    first token first."""
    if width == logits.shape[1]:
        return logits.sort(descending=True, stable=True)
    index = logits.topk(width, sorted=False).indices.sort().values
    ordered, order = logits.gather(1, index).sort(descending=True, stable=True)
    return ordered, index.gather(1, order)


def _weights(logits: Tensor, largest: Tensor, knobs: Knobs) -> Tensor:
    """exp((logits - largest) / temperature) in units of 1 / UNIT: sums of integers are exact, in
    whatever order a device adds."""
    weights = ((logits - largest) / knobs.temperature).exp()
    return (weights * UNIT).long()


def _find(upto: Tensor, target: Tensor) -> Tensor:
    """The first place [B,1] where the running sums upto[B,C] exceed target[B,1], or where they
    reach their end: never one of no weight."""
    return ((upto <= target) & (upto < upto[:, -1:])).sum(-1, keepdim=True)
