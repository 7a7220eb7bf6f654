"""Gated DeltaProduct: several writes by the delta rule per token, on a decaying state."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.gated_deltaproduct.config import GatedDeltaProductConfig
from archsearch.operators.gated_deltaproduct.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: GatedDeltaProductConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.gated_deltaproduct.module import GatedDeltaProduct

    return GatedDeltaProduct(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Key head widths up to the hidden size (values are twice as wide), writes per token, and
    the output gate."""
    return {
        "head_dim": tuple(width for width in (32, 64, 128, 256) if width <= hidden_size),
        "num_householder": (1, 2, 3),
        "use_gate": (True, False),
    }


GATED_DELTAPRODUCT = Operator(
    name="gated_deltaproduct",
    code="gdp",
    title="Gated DeltaProduct",
    kind="mixer",
    config=GatedDeltaProductConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("fla", "torch", "reference"),
    source="Siems et al. 2025, arXiv 2502.10297",
)
