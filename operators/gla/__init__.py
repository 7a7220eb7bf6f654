"""Gated linear attention: a matrix state whose rows decay by their own learned gates."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.base import default_head_dim
from archsearch.operators.gla.config import GLAConfig
from archsearch.operators.gla.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: GLAConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.gla.module import GLA as GLAMixer

    return GLAMixer(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Key widths of a quarter, half and all of the value width."""
    head_dim = default_head_dim(hidden_size)
    return {"k_head_dim": (head_dim // 4, head_dim // 2, head_dim)}


GLA = Operator(
    name="gla",
    code="gla",
    title="GLA",
    kind="mixer",
    config=GLAConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("fla", "torch", "reference"),
    source="Yang et al. 2023, arXiv 2312.06635",
)
