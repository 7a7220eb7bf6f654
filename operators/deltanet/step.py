"""One decode step of a whole DeltaNet layer in three launches: norm, projections and
convolutions; the delta rule; projection and add. Gated DeltaNet and Gated DeltaProduct share it.

Legend: B rows, H hidden size, G value heads, V value width.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.deltanet.module import DeltaNet
from archsearch.operators.fused.delta import delta_step
from archsearch.operators.fused.heads import cut
from archsearch.operators.fused.products import MOST_TAPS
from archsearch.operators.fused.products import Convs
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project
from archsearch.operators.fused.products import project_heads
from archsearch.operators.layer import State


def step(
    mixer: DeltaNet, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    # what Gated DeltaNet and Gated DeltaProduct have beside it
    config = mixer.config
    a_proj, g_proj = getattr(mixer, "a_proj", None), getattr(mixer, "g_proj", None)
    decay = (
        () if a_proj is None else (mixer.get_parameter("A_log"), mixer.get_parameter("dt_bias"))
    )
    projections = [mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.b_proj]
    projections += [more for more in (a_proj, g_proj) if more is not None]
    names = ("q_conv", "k_conv", "v_conv")
    convs = Convs((mixer.q_conv, mixer.k_conv, mixer.v_conv), [state[name] for name in names])
    weights = [projection.weight for projection in projections]
    inputs = project(h, weights, norm=Norm.of(norm), convs=convs, active=active)
    begins = [0]
    for weight in weights:
        begins.append(begins[-1] + len(weight))
    gate = begins[-2] if g_proj is not None else 0
    memory = state["recurrent"]
    plan = cut(len(h), *memory.shape[1:])
    o = delta_step(
        inputs,
        (begins[0], begins[1], begins[2], begins[3], begins[4], gate),
        memory,
        active,
        norm=mixer.o_norm,
        key_heads=mixer.num_heads,
        cut=plan,
        decay=decay,
        gated=g_proj is not None,
        writes=getattr(config, "num_householder", 1),
        strength=2.0 if getattr(config, "allow_neg_eigval", False) else 1.0,
    )
    opened = inputs[:, gate : gate + o.shape[1]] if g_proj is not None else None
    return project_heads(
        o, mixer.o_proj.weight, h, active, plan=plan, norm=mixer.o_norm, gate=opened
    )


def refuses(mixer: DeltaNet) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    taps = mixer.q_conv.kernel
    if taps > MOST_TAPS:
        return f"its convolutions have at most {MOST_TAPS} taps; here {taps}"
    return ""
