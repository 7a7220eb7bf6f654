"""Parameters, FLOPs and bytes of the feed-forward network."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.ffn.config import FFNConfig


def cost(config: FFNConfig, shape: Shape) -> Cost:
    """Cost of one layer; it keeps no state."""
    matrices = 3 if config.activation == "swiglu" else 2
    parameters = matrices * config.hidden_size * config.intermediate_size
    return layer_cost(config, shape, parameters=parameters, matmul_parameters=parameters)
