"""Full softmax attention with grouped key/value heads and rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.attention.config import AttentionConfig
from archsearch.operators.attention.cost import cost
from archsearch.operators.base import Operator
from archsearch.operators.base import default_head_dim

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: AttentionConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.attention.module import Attention

    return Attention(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Key/value head counts, from one to as many as there are heads."""
    heads = hidden_size // default_head_dim(hidden_size)
    return {"num_kv_heads": tuple(k for k in range(1, heads + 1) if heads % k == 0)}


ATTENTION = Operator(
    name="attention",
    code="a",
    title="Attention",
    kind="mixer",
    config=AttentionConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("flash_attn", "sdpa", "reference"),
    source="Vaswani et al. 2017, arXiv 1706.03762; GQA: Ainslie et al. 2023, arXiv 2305.13245",
)
