"""Parameters, FLOPs and bytes of retention."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.base import state_element_bytes
from archsearch.operators.retention.config import RetentionConfig


def cost(config: RetentionConfig, shape: Shape) -> Cost:
    """Cost of one layer; the state is one matrix per head, whatever the context."""
    keys = config.num_heads * config.head_dim
    values = config.num_heads * config.v_head_dim
    matmul = config.hidden_size * (2 * keys + 3 * values)
    state = keys * config.v_head_dim
    return layer_cost(
        config,
        shape,
        parameters=matmul + config.v_head_dim,
        matmul_parameters=matmul,
        # decay, outer product and its sum, read-out
        mixing_flops=5 * state,
        state_bytes=state * state_element_bytes(config.state_dtype, shape),
    )
