"""Parameters, FLOPs and bytes of Gated DeltaNet."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.deltanet.cost import delta_cost
from archsearch.operators.gated_deltanet.config import GatedDeltaNetConfig


def cost(config: GatedDeltaNetConfig, shape: Shape) -> Cost:
    """Cost of one layer; its state does not grow with the context."""
    gate = config.num_v_heads * config.v_head_dim if config.use_gate else 0
    return delta_cost(
        config,
        shape,
        num_v_heads=config.num_v_heads,
        gate_matmul=config.hidden_size * (config.num_v_heads + gate),
        gate_parameters=2 * config.num_v_heads,
        decays=True,
    )
