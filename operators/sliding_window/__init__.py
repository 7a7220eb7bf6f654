"""Softmax attention over the last `window` tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.sliding_window.config import SlidingWindowConfig
from archsearch.operators.sliding_window.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: SlidingWindowConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.sliding_window.module import SlidingWindowAttention

    return SlidingWindowAttention(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Window lengths."""
    return {"window": (128, 256, 512, 1024, 2048)}


SLIDING_WINDOW = Operator(
    name="sliding_window",
    code="w",
    title="Sliding-window attention",
    kind="mixer",
    config=SlidingWindowConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("flash_attn", "sdpa", "reference"),
    source="Beltagy et al. 2020, arXiv 2004.05150; Jiang et al. 2023, arXiv 2310.06825",
)
