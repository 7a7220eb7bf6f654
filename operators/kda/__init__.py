"""Kimi Delta Attention: the delta rule on a state whose every row decays by its own gate."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.kda.config import KDAConfig
from archsearch.operators.kda.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: KDAConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.kda.module import KDA as KDAMixer

    return KDAMixer(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Head widths that divide the hidden size; the heads fill it."""
    return {"head_dim": tuple(width for width in (32, 64, 128) if hidden_size % width == 0)}


KDA = Operator(
    name="kda",
    code="kda",
    title="Kimi Delta Attention",
    kind="mixer",
    config=KDAConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("fla", "torch", "reference"),
    source="Kimi Team 2025, arXiv 2510.26692",
)
