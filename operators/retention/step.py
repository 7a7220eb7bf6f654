"""One decode step of a whole retention layer in three launches: norm and projections; rotation
and recurrence; norm of the heads, gate, projection and add.

Legend: B rows, H hidden size, N heads, K key width, V value width.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.heads import cut
from archsearch.operators.fused.linear import Fixed
from archsearch.operators.fused.linear import linear_step
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project
from archsearch.operators.fused.products import project_heads
from archsearch.operators.layer import State
from archsearch.operators.retention.module import Retention


def step(
    mixer: Retention, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.g_proj)
    inputs = project(h, [each.weight for each in projections], norm=Norm.of(norm))
    memory, shared = state["recurrent"], state.shared
    _, heads, keys, values = memory.shape
    gate = heads * (2 * keys + values)
    plan = cut(len(h), heads, keys, values)
    o = linear_step(
        inputs,
        (0, heads * keys, 2 * heads * keys, gate, 0),
        memory,
        active,
        norm=mixer.norm,
        cut=plan,
        decay=Fixed(shared["log_decay"], shared["cos"], shared["sin"], position),
    )
    return project_heads(
        o, mixer.o_proj.weight, h, active, plan=plan, norm=mixer.norm, gate=inputs[:, gate:]
    )


def refuses(mixer: Retention) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    return ""
