"""Parameters, FLOPs and bytes of gated linear attention."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.base import state_element_bytes
from archsearch.operators.gla.config import GLAConfig


def cost(config: GLAConfig, shape: Shape) -> Cost:
    """Cost of one layer; the state is one matrix per head, whatever the context."""
    keys = config.num_heads * config.k_head_dim
    values = config.num_heads * config.head_dim
    gate = config.gate_rank * (config.hidden_size + keys)
    matmul = config.hidden_size * (2 * keys + 3 * values) + gate
    state = keys * config.head_dim
    return layer_cost(
        config,
        shape,
        parameters=matmul + keys + config.head_dim,
        matmul_parameters=matmul,
        # decay, outer product and its sum, read-out
        mixing_flops=5 * state,
        state_bytes=state * state_element_bytes(config.state_dtype, shape),
    )
