"""One decode step of a whole Mamba-2 layer in three launches: norm, projection and convolution;
recurrence and gate; gated norm, projection and add.

Legend: B rows, H hidden size, D inner width.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.products import MOST_TAPS
from archsearch.operators.fused.products import Convs
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project
from archsearch.operators.fused.products import write_back
from archsearch.operators.fused.ssd import ssd_step
from archsearch.operators.layer import State
from archsearch.operators.mamba2.module import Mamba2


def step(
    mixer: Mamba2, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    inner, channels = mixer.config.d_inner, mixer.config.conv_channels
    maps = mixer.num_groups * mixer.d_state
    weight = mixer.in_proj.weight
    # the parts of one matrix, the convolution's first
    parts = (weight[inner : inner + channels], weight[:inner], weight[inner + channels :])
    convs = Convs((mixer.conv1d,), (state["conv"],))
    inputs = project(h, parts, norm=Norm.of(norm), convs=convs, active=active)
    y = ssd_step(
        inputs,
        (0, inner, inner + maps, channels, channels + inner),
        state["ssm"],
        active,
        heads=(mixer.A_log, mixer.dt_bias, mixer.D),
        num_groups=mixer.num_groups,
    )
    gated = Norm(mixer.norm.weight, mixer.norm.eps)
    return write_back(y, mixer.out_proj.weight, h, active, norm=gated)


def refuses(mixer: Mamba2) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    if mixer.num_groups > 1:
        return f"it norms all heads together; here they are in {mixer.num_groups} groups"
    if mixer.config.d_conv > MOST_TAPS:
        return f"its convolution has at most {MOST_TAPS} taps; here {mixer.config.d_conv}"
    return ""
