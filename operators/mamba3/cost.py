"""Parameters, FLOPs and bytes of Mamba-3."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.base import state_element_bytes
from archsearch.operators.mamba3.config import Mamba3Config


def cost(config: Mamba3Config, shape: Shape) -> Cost:
    """Cost of one layer; its state does not grow with the context."""
    inner, heads, maps = config.d_inner, config.num_heads, config.num_heads * config.d_state
    matmul = config.hidden_size * (sum(config.splits) + inner)
    vectors = 2 * heads + 2 * maps + 2 * config.d_state + (inner if config.out_norm else 0)
    ssm_bytes = inner * config.d_state * state_element_bytes(config.state_dtype, shape)
    token_bytes = (maps + inner) * shape.element_bytes
    return layer_cost(
        config,
        shape,
        parameters=matmul + vectors,
        matmul_parameters=matmul,
        mixing_flops=_scan_flops(config, shape),
        state_bytes=ssm_bytes + token_bytes + 4 * heads * config.num_angles,
    )


def _scan_flops(config: Mamba3Config, shape: Shape) -> float:
    """FLOPs of the rotation and the recurrence for one token."""
    maps, state = config.num_heads * config.d_state, config.d_inner * config.d_state
    turning = 12 * config.num_heads * config.num_angles
    if shape.phase == "decode":
        return turning + 7 * state
    # masked attention within a chunk; one matrix product each into and out of the state
    seen = (min(config.chunk_size, shape.context) + 1) / 2
    return turning + 2 * seen * (maps + config.d_inner) + 4 * state
