"""What sampling is: its settings, and the plain form that the fast one is held to.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep everything."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0; got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1]; got {self.top_p}")


GREEDY = Sampling(temperature=0.0)


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token per row of logits[B,V]; the most likely one is never cut.

    Raises ValueError where chance is asked for without a generator.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if generator is None:
        raise ValueError("sampling needs a generator; only temperature 0 does without")
    weights = cut(logits, sampling).softmax(-1)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def cut(logits: Tensor, sampling: Sampling) -> Tensor:
    """logits[B,V] over the temperature, -inf where a token may not be drawn: below the `top_k`
    most likely ones, and beyond the first that reach `top_p` of what those weigh. Of equally
    likely tokens the first ones count as more likely."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.sort(descending=True, stable=True)
        weights = ordered.softmax(-1)
        beyond = weights.cumsum(-1) - weights >= sampling.top_p
        logits = torch.full_like(logits, -torch.inf).scatter(
            1, index, ordered.masked_fill(beyond, -torch.inf)
        )
    return logits
