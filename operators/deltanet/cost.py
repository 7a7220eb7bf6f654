"""Parameters, FLOPs and bytes of DeltaNet."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.base import state_element_bytes
from archsearch.operators.deltanet.config import DeltaNetConfig


def cost(config: DeltaNetConfig, shape: Shape) -> Cost:
    """Cost of one layer; its state does not grow with the context."""
    return delta_cost(config, shape, num_v_heads=config.num_heads)


def delta_cost(
    config: DeltaNetConfig,
    shape: Shape,
    *,
    num_v_heads: int,
    gate_matmul: int = 0,
    gate_parameters: int = 0,
    decays: bool = False,
) -> Cost:
    """Cost of a delta-rule layer with `num_v_heads` states; `gate_matmul` and
    `gate_parameters` are the weights that a decay and an output gate add."""
    keys, values = config.num_heads * config.head_dim, num_v_heads * config.v_head_dim
    channels = 2 * keys + values
    matmul = config.hidden_size * (channels + values + num_v_heads) + gate_matmul
    state = num_v_heads * config.head_dim * config.v_head_dim
    # per element of the state: read by the key, corrected, read by the query, and decayed
    recurrence = (7 if decays else 6) * state
    return layer_cost(
        config,
        shape,
        parameters=matmul + config.conv_size * channels + config.v_head_dim + gate_parameters,
        matmul_parameters=matmul,
        mixing_flops=recurrence + 2 * config.conv_size * channels,
        state_bytes=state * state_element_bytes(config.state_dtype, shape)
        + (config.conv_size - 1) * channels * shape.element_bytes,
    )
