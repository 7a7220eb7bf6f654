"""One decode step of a whole KDA layer in three launches: norm, projections and convolutions;
decay and gate from their low rank, and the delta rule; norm of the heads, gate, projection, add.

Legend: B rows, H hidden size, N heads, K key width, V value width.
"""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor
from torch import nn

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.deltanet.step import refuses
from archsearch.operators.fused.delta import LowRank
from archsearch.operators.fused.delta import delta_step
from archsearch.operators.fused.heads import cut
from archsearch.operators.fused.products import Convs
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project
from archsearch.operators.fused.products import project_heads
from archsearch.operators.kda.module import KDA
from archsearch.operators.layer import State

__all__ = ["refuses", "step"]


def step(
    mixer: KDA, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    (f_down, f_up), (g_down, g_up) = _linears(mixer.f_proj), _linears(mixer.g_proj)
    projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.b_proj, f_down, g_down)
    weights = [projection.weight for projection in projections]
    names = ("q_conv", "k_conv", "v_conv")
    convs = Convs((mixer.q_conv, mixer.k_conv, mixer.v_conv), [state[name] for name in names])
    inputs = project(h, weights, norm=Norm.of(norm), convs=convs, active=active)
    memory = state["recurrent"]
    _, heads, keys, values = memory.shape
    plan = cut(len(h), heads, keys, values)
    low = LowRank(f_up.weight, g_up.weight, g_up.bias, h.new_empty(len(h), heads * values))
    q, k, v, b, f, g, _ = accumulate((len(weight) for weight in weights), initial=0)
    o = delta_step(
        inputs,
        (q, k, v, b, f, g),
        memory,
        active,
        norm=mixer.o_norm,
        key_heads=heads,
        cut=plan,
        decay=(mixer.A_log, mixer.dt_bias),
        low=low,
    )
    return project_heads(
        o,
        mixer.o_proj.weight,
        h,
        active,
        plan=plan,
        norm=mixer.o_norm,
        gate=low.opened,
        opened=True,
    )


def _linears(pair: nn.Sequential) -> tuple[nn.Linear, nn.Linear]:
    """The projection to a low rank and the one back."""
    down, up = pair
    assert isinstance(down, nn.Linear) and isinstance(up, nn.Linear), f"{pair} is no such pair"
    return down, up
