"""Settings of sliding-window attention."""

from __future__ import annotations

from pydantic import Field

from archsearch.operators.attention.config import AttentionConfig


class SlidingWindowConfig(AttentionConfig):
    """Attention whose queries see themselves and the `window` - 1 tokens before."""

    window: int = Field(default=512, gt=0)
