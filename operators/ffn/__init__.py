"""Feed-forward network: SwiGLU, or squared ReLU without a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.ffn.config import FFNConfig
from archsearch.operators.ffn.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: FFNConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.ffn.module import FFN

    return FFN(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Widths from twice to four times the hidden size, and both activations."""
    return {
        "intermediate_size": tuple(ratio * hidden_size for ratio in (2, 3, 4)),
        "activation": ("swiglu", "relu2"),
    }


FFN = Operator(
    name="ffn",
    code="f",
    title="FFN",
    kind="ffn",
    config=FFNConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("torch", "reference"),
    source="SwiGLU: Shazeer 2020, arXiv 2002.05202; relu²: So et al. 2021, arXiv 2109.08668",
)
