"""One decode step of a whole Mamba layer in four launches: norm, projection and convolution; what
the convolved input selects; the scan and its gate; projection and add.

Legend: B rows, H hidden size.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.products import MOST_TAPS
from archsearch.operators.fused.products import Convs
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project
from archsearch.operators.fused.products import project_parts
from archsearch.operators.fused.products import write_back
from archsearch.operators.fused.scan import Channels
from archsearch.operators.fused.scan import scan_step
from archsearch.operators.layer import State
from archsearch.operators.mamba.module import Mamba

WIDEST = 512


def step(
    mixer: Mamba, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    inner, weight = len(mixer.D), mixer.in_proj.weight
    convs = Convs((mixer.conv1d,), (state["conv"],))
    inputs = project(
        h, (weight[:inner], weight[inner:]), norm=Norm.of(norm), convs=convs, active=active
    )
    selected = project_parts(inputs[:, :inner], mixer.x_proj.weight)
    dt_proj = mixer.dt_proj
    channels = Channels(dt_proj.weight, dt_proj.bias, mixer.A_log, mixer.D)
    y = scan_step(inputs, selected, state["ssm"], active, channels=channels)
    return write_back(y, mixer.out_proj.weight, h, active)


def refuses(mixer: Mamba) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    taps = mixer.conv1d.kernel
    if taps > MOST_TAPS:
        return f"its convolution has at most {MOST_TAPS} taps; here {taps}"
    for name, width in (("state", mixer.d_state), ("time steps' rank", mixer.dt_rank)):
        if width > WIDEST:
            return f"its {name} is at most {WIDEST} wide; here {width}"
    return ""
