"""Parameters, FLOPs and bytes of Gated DeltaProduct."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.base import state_element_bytes
from archsearch.operators.gated_deltaproduct.config import GatedDeltaProductConfig


def cost(config: GatedDeltaProductConfig, shape: Shape) -> Cost:
    """Cost of one layer; its state does not grow with the context."""
    writes, heads = config.num_householder, config.num_v_heads
    keys, values = config.num_heads * config.head_dim, heads * config.v_head_dim
    channels = keys + writes * (keys + values)
    gate = values if config.use_gate else 0
    matmul = config.hidden_size * (channels + values + gate + (writes + 1) * heads)
    state = heads * config.head_dim * config.v_head_dim
    # per element of the state: read by each key and corrected, read by the query, decayed
    recurrence = (4 * writes + 3) * state
    return layer_cost(
        config,
        shape,
        parameters=matmul + config.conv_size * channels + config.v_head_dim + 2 * heads,
        matmul_parameters=matmul,
        mixing_flops=recurrence + 2 * config.conv_size * channels,
        state_bytes=state * state_element_bytes(config.state_dtype, shape)
        + (config.conv_size - 1) * channels * shape.element_bytes,
    )
