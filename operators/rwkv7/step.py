"""One decode step of a whole RWKV-7 layer in four launches: norm, token shift and blends;
projections, those of decay, rate and gate to their low ranks; what comes back from these, and the
recurrence; norm of the heads, bonus, gate, projection and add.

The blends are a kernel of their own: every projection reads another one, all want the whole row
normed, and the row kept from the last token must not change while anybody reads it. The product
after it fetches its weights meanwhile.

Legend: B rows, H hidden size, N heads, D head width.
"""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.heads import cut
from archsearch.operators.fused.mixing import mix_step
from archsearch.operators.fused.products import Centred
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project_each
from archsearch.operators.fused.products import write_back
from archsearch.operators.fused.rwkv import Vectors
from archsearch.operators.fused.rwkv import rwkv_step
from archsearch.operators.layer import State
from archsearch.operators.rwkv7.module import DECAY_SCALE
from archsearch.operators.rwkv7.module import MIXED
from archsearch.operators.rwkv7.module import RWKV7


def step(
    mixer: RWKV7, norm: RMSNorm, h: Tensor, state: State, position: Tensor, active: Tensor
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    inputs = mix_step(h, Norm.of(norm), mixer.mix_weights, state["shift"], active)
    first = {
        "r": mixer.r_proj,
        "k": mixer.k_proj,
        "v": mixer.v_proj,
        "w": mixer.decay_down,
        "a": mixer.rate_down,
        "g": mixer.gate_down,
    }
    weights = [first[name].weight for name in MIXED]
    projected = project_each(inputs, weights)
    begins = dict(zip(MIXED, accumulate((len(w) for w in weights), initial=0), strict=False))
    memory, heads = state["recurrent"], mixer.norm
    plan = cut(len(h), *memory.shape[1:])
    made = rwkv_step(
        projected,
        tuple(begins[name] for name in first),
        memory,
        active,
        ups=(mixer.decay_up.weight, mixer.rate_up.weight, mixer.gate_up.weight),
        vectors=Vectors(mixer.decay_up.bias, mixer.rate_up.bias, mixer.k_k, mixer.k_a, mixer.r_k),
        norm=(heads.weight, heads.bias, heads.eps),
        cut=plan,
        scale=DECAY_SCALE,
    )
    weight = mixer.o_proj.weight
    if plan.whole:
        return write_back(made.o, weight, h, active)
    centred = Centred(heads.weight, heads.bias, heads.eps, mixer.head_dim, made.added)
    return write_back(made.o, weight, h, active, norm=centred, gate=made.gate, opened=True)


def refuses(mixer: RWKV7) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    return ""
