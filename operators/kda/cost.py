"""Parameters, FLOPs and bytes of Kimi Delta Attention."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.deltanet.cost import delta_cost
from archsearch.operators.kda.config import KDAConfig


def cost(config: KDAConfig, shape: Shape) -> Cost:
    """Cost of one layer; its state does not grow with the context."""
    keys = config.num_heads * config.head_dim
    values = config.num_heads * config.v_head_dim
    gates = config.v_head_dim * (2 * config.hidden_size + keys + values)
    return delta_cost(
        config,
        shape,
        num_v_heads=config.num_heads,
        gate_matmul=gates,
        # the bias of the output gate, the decay's rates and biases
        gate_parameters=values + config.num_heads + keys,
        decays=True,
    )
