"""One decode step of a whole FFN layer in two launches.

Legend: B rows, H hidden size.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.ffn.module import FFN
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import feed_forward
from archsearch.operators.fused.products import write_back
from archsearch.operators.layer import State


def step(
    mixer: FFN, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]: norm, both projections and the activation; projection and add."""
    gate = None if mixer.gate_proj is None else mixer.gate_proj.weight
    inner = feed_forward(h, gate, mixer.up_proj.weight, Norm.of(norm))
    return write_back(inner, mixer.down_proj.weight, h, active)


def refuses(mixer: FFN) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    return ""
