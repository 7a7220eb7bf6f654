"""DeltaNet: linear attention whose state is corrected rather than added to."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.deltanet.config import DeltaNetConfig
from archsearch.operators.deltanet.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: DeltaNetConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.deltanet.module import DeltaNet

    return DeltaNet(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Head widths that divide the hidden size; the heads fill it."""
    return {"head_dim": tuple(width for width in (32, 64, 128) if hidden_size % width == 0)}


DELTANET = Operator(
    name="deltanet",
    code="d",
    title="DeltaNet",
    kind="mixer",
    config=DeltaNetConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("fla", "torch", "reference"),
    source="Yang et al. 2024, arXiv 2406.06484; Schlag et al. 2021, arXiv 2102.11174",
)
