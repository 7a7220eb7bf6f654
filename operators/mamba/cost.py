"""Parameters, FLOPs and bytes of Mamba."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.base import state_element_bytes
from archsearch.operators.mamba.config import MambaConfig


def cost(config: MambaConfig, shape: Shape) -> Cost:
    """Cost of one layer; its state does not grow with the context."""
    inner, state = config.d_inner, config.d_inner * config.d_state
    matmul = inner * (3 * config.hidden_size + 2 * config.dt_rank + 2 * config.d_state)
    conv = inner * (config.d_conv + config.conv_bias)
    conv_bytes = inner * (config.d_conv - 1) * shape.element_bytes
    ssm_bytes = state * state_element_bytes(config.state_dtype, shape)
    return layer_cost(
        config,
        shape,
        # and beside A of every state entry the bias of dt and the skip D of every channel
        parameters=matmul + conv + state + 2 * inner,
        matmul_parameters=matmul,
        # dt A and its exponential, decay, gain, and the output's sum over the state
        mixing_flops=2 * inner * config.d_conv + 7 * state,
        state_bytes=conv_bytes + ssm_bytes,
    )
