"""Mamba-3: a state-space layer with a trapezoidal rule and a state that turns."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.mamba3.config import Mamba3Config
from archsearch.operators.mamba3.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: Mamba3Config) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.mamba3.module import Mamba3

    return Mamba3(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """State widths, and the head widths that divide the inner width."""
    inner = 2 * hidden_size
    return {
        "d_state": (16, 32, 64, 128),
        "head_dim": tuple(width for width in (32, 64, 128) if inner % width == 0),
    }


MAMBA3 = Operator(
    name="mamba3",
    code="m3",
    title="Mamba-3",
    kind="mixer",
    config=Mamba3Config,
    build=build,
    cost=cost,
    choices=choices,
    backends=("mamba_ssm", "torch", "reference"),
    source="Lahoti et al. 2026, arXiv 2603.15569",
)
