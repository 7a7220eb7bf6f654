"""Parameters, FLOPs and bytes of Mamba-2."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.base import state_element_bytes
from archsearch.operators.mamba2.config import Mamba2Config


def cost(config: Mamba2Config, shape: Shape) -> Cost:
    """Cost of one layer; its state does not grow with the context."""
    inner, channels = config.d_inner, config.conv_channels
    matmul = config.hidden_size * (2 * inner + channels + config.num_heads)
    conv = channels * (config.d_conv + config.conv_bias)
    per_head = 3 * config.num_heads
    conv_bytes = channels * (config.d_conv - 1) * shape.element_bytes
    ssm_bytes = inner * config.d_state * state_element_bytes(config.state_dtype, shape)
    return layer_cost(
        config,
        shape,
        parameters=matmul + conv + per_head + inner,
        matmul_parameters=matmul,
        mixing_flops=2 * channels * config.d_conv + _scan_flops(config, shape),
        state_bytes=conv_bytes + ssm_bytes,
    )


def _scan_flops(config: Mamba2Config, shape: Shape) -> float:
    """FLOPs of the state-space recurrence for one token."""
    state = config.d_inner * config.d_state
    if shape.phase == "decode":
        return 5 * state
    # masked attention within a chunk; one matrix product each into and out of the state
    seen = (min(config.chunk_size, shape.context) + 1) / 2
    within = 2 * seen * (config.num_groups * config.d_state + config.d_inner)
    return within + 4 * state
