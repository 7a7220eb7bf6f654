"""Gated DeltaNet: the delta rule with a decaying state and a gated output."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.gated_deltanet.config import GatedDeltaNetConfig
from archsearch.operators.gated_deltanet.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: GatedDeltaNetConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.gated_deltanet.module import GatedDeltaNet

    return GatedDeltaNet(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Key head widths up to the hidden size (values are twice as wide), and the output gate."""
    return {
        "head_dim": tuple(width for width in (32, 64, 128, 256) if width <= hidden_size),
        "use_gate": (True, False),
    }


GATED_DELTANET = Operator(
    name="gated_deltanet",
    code="gd",
    title="Gated DeltaNet",
    kind="mixer",
    config=GatedDeltaNetConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("fla", "torch", "reference"),
    source="Yang et al. 2024, arXiv 2412.06464",
)
