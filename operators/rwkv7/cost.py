"""Parameters, FLOPs and bytes of RWKV-7 time mixing."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.base import state_element_bytes
from archsearch.operators.rwkv7.config import RWKV7Config


def cost(config: RWKV7Config, shape: Shape) -> Cost:
    """Cost of one layer; the state is one matrix per head and the last input."""
    hidden = config.hidden_size
    ranks = config.decay_rank + config.rate_rank + config.gate_rank
    matmul = hidden * (4 * hidden + 2 * ranks)
    # six mixes, two biases, k_k, k_a and r_k, weight and bias of the norm
    vectors = 13 * hidden
    memory = hidden * config.head_dim
    state = memory * state_element_bytes(config.state_dtype, shape)
    return layer_cost(
        config,
        shape,
        parameters=matmul + vectors,
        matmul_parameters=matmul,
        # decay, read of the removed direction, two outer products and sums, read-out
        mixing_flops=9 * memory,
        state_bytes=state + hidden * shape.element_bytes,
    )
