"""Retention: linear attention with rotary positions and a fixed decay per head."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.base import default_head_dim
from archsearch.operators.retention.config import RetentionConfig
from archsearch.operators.retention.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: RetentionConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.retention.module import Retention

    return Retention(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Values as wide as keys, and twice as wide."""
    head_dim = default_head_dim(hidden_size)
    return {"v_head_dim": (head_dim, 2 * head_dim)}


RETENTION = Operator(
    name="retention",
    code="ret",
    title="Retention",
    kind="mixer",
    config=RetentionConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("fla", "torch", "reference"),
    source="Sun et al. 2023, arXiv 2307.08621",
)
