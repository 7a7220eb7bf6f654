"""One decode step of a whole Mamba-3 layer in three launches: norm and projection; recurrence,
norm and gate; projection and add.

Legend: B rows, H hidden size.
"""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project
from archsearch.operators.fused.products import write_back
from archsearch.operators.fused.trapezoid import MOST_ENTRIES
from archsearch.operators.fused.trapezoid import Heads
from archsearch.operators.fused.trapezoid import trapezoid_step
from archsearch.operators.layer import State
from archsearch.operators.mamba3.module import Mamba3


def step(
    mixer: Mamba3, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    config = mixer.config
    inputs = project(h, (mixer.in_proj.weight,), norm=Norm.of(norm))
    heads = Heads(
        b_norm=mixer.B_norm,
        c_norm=mixer.C_norm,
        b_bias=mixer.B_bias,
        c_bias=mixer.C_bias,
        dt_bias=mixer.dt_bias,
        skip=mixer.D,
        norm=None if mixer.norm is None else (mixer.norm.weight, mixer.norm.eps),
    )
    y = trapezoid_step(
        inputs,
        tuple(accumulate(config.splits[:-1], initial=0)),
        state,
        active,
        heads=heads,
        num_groups=config.num_groups,
        floor=config.a_floor,
    )
    return write_back(y, mixer.out_proj.weight, h, active)


def refuses(mixer: Mamba3) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    width, entries = mixer.config.head_dim, mixer.config.d_state
    if power_of_2(width) * power_of_2(entries) > MOST_ENTRIES:
        return f"its heads have at most {MOST_ENTRIES} state entries; here {width} times {entries}"
    return ""
