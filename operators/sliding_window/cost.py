"""Parameters, FLOPs and bytes of sliding-window attention."""

from __future__ import annotations

from archsearch.operators.attention.cost import attention_cost
from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.sliding_window.config import SlidingWindowConfig


def cost(config: SlidingWindowConfig, shape: Shape) -> Cost:
    """Cost of one layer; the cache holds at most `window` tokens per row."""
    return attention_cost(config, shape, cached=min(config.window, shape.context))
