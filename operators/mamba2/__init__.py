"""Mamba-2: a state-space layer with one decay per head and step."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.mamba2.config import Mamba2Config
from archsearch.operators.mamba2.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: Mamba2Config) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.mamba2.module import Mamba2

    return Mamba2(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """State widths, and the head widths that divide the inner width."""
    inner = 2 * hidden_size
    return {
        "d_state": (16, 32, 64, 128),
        "head_dim": tuple(width for width in (32, 64, 128) if inner % width == 0),
    }


MAMBA2 = Operator(
    name="mamba2",
    code="m2",
    title="Mamba-2",
    kind="mixer",
    config=Mamba2Config,
    build=build,
    cost=cost,
    choices=choices,
    backends=("mamba_ssm", "torch", "reference"),
    source="Dao and Gu 2024, arXiv 2405.21060",
)
