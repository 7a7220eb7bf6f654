"""Multi-head latent attention: keys and values of all heads come from one small latent."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.mla.config import MLAConfig
from archsearch.operators.mla.config import default_rank
from archsearch.operators.mla.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: MLAConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.mla.module import MultiHeadLatentAttention

    return MultiHeadLatentAttention(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Widths of the latent, from a quarter of the default to twice it."""
    rank = default_rank(hidden_size)
    return {"kv_lora_rank": tuple(sorted({max(1, rank // 4), max(1, rank // 2), rank, 2 * rank}))}


MLA = Operator(
    name="mla",
    code="mla",
    title="Latent attention",
    kind="mixer",
    config=MLAConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("flash_attn", "sdpa", "torch", "reference"),
    source="DeepSeek-AI 2024, arXiv 2405.04434",
)
