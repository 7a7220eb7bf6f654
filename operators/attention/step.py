"""One decode step of a whole attention layer in three launches: norm and projections; rotation,
cache and softmax; projection and add. Sliding-window attention shares it.

Legend: B rows, H hidden size.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.attention.module import Attention
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.attend import HeadNorms
from archsearch.operators.fused.attend import attend_step
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project
from archsearch.operators.fused.products import write_back
from archsearch.operators.layer import State

WIDEST = 256


def step(
    mixer: Attention, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    biases = [each.bias for each in projections if each.bias is not None]
    inputs = project(
        h, [each.weight for each in projections], norm=Norm.of(norm), biases=biases or None
    )
    norms = None
    if mixer.q_norm is not None and mixer.k_norm is not None:
        norms = HeadNorms(mixer.q_norm, mixer.k_norm)
    o = attend_step(inputs, state, position, active, num_heads=mixer.num_heads, norms=norms)
    return write_back(o, mixer.o_proj.weight, h, active)


def refuses(mixer: Attention) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    if mixer.head_dim > WIDEST:
        return f"its heads are at most {WIDEST} wide; here {mixer.head_dim}"
    return ""
