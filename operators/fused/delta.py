"""The delta rule for one token, state in place: unit keys and queries, write strength and decay
from their logits, and the norm of the heads where a program holds a whole one.

Legend: B rows, N key heads, G value heads, K key width, V value width.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.common.delta_rule import L2_EPS
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import softplus
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.heads import Cut
from archsearch.operators.fused.heads import head_output


@triton.jit(do_not_specialize=["early"])
def delta_kernel(
    inputs,
    a_log,
    dt_bias,
    norm,
    state,
    active,
    out,
    early,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DECAYS: tl.constexpr,
    GATED: tl.constexpr,
    HERE: tl.constexpr,
    EPS: tl.constexpr,
    UNIT_EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns BLOCK_V columns of one head's state [K,V] in one row."""
    pid = tl.program_id(0)
    row, head = pid // HEADS, pid % HEADS
    k = tl.arange(0, BLOCK_K)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    k_ok, v_ok = k < K, v < V
    mask = k_ok[:, None] & v_ok[None, :]
    tile = state + pid.to(tl.int64) * (K * V) + k[:, None] * V + v[None, :]
    kind = out.dtype.element_ty
    wait_if_alone(early, DEPENDENT)
    s = tl.load(tile, mask=mask, other=0.0).to(tl.float32)
    takes_part = tl.load(active + row).to(tl.int1)
    wait(DEPENDENT)
    here = inputs + row.to(tl.int64) * STRIDE
    shared = k + (head // GROUP) * K
    query = tl.load(here + COLUMNS[0] + shared, mask=k_ok, other=0.0).to(tl.float32)
    key = tl.load(here + COLUMNS[1] + shared, mask=k_ok, other=0.0).to(tl.float32)
    value = tl.load(here + COLUMNS[2] + head * V + v, mask=v_ok, other=0.0).to(tl.float32)
    beta = tl.sigmoid(tl.load(here + COLUMNS[3] + head).to(tl.float32))
    query *= SCALE / tl.sqrt(tl.sum(query * query, 0) + UNIT_EPS)
    key *= 1.0 / tl.sqrt(tl.sum(key * key, 0) + UNIT_EPS)
    if DECAYS:
        step = tl.load(here + COLUMNS[4] + head).to(tl.float32)
        step = softplus(step + tl.load(dt_bias + head).to(tl.float32))
        s *= tl.exp(-tl.exp(tl.load(a_log + head).to(tl.float32)) * step)
    correction = beta * (value - tl.sum(s * key[:, None], 0))
    s += key[:, None] * correction[None, :]
    o = tl.sum(s * query[:, None], 0)
    gate = here + COLUMNS[5] + head * V if GATED else None
    o = head_output(o, norm, gate, v, v_ok, V, EPS, HERE, kind)
    tl.store(tile, s.to(state.dtype.element_ty), mask=mask & takes_part)
    tl.store(out + pid.to(tl.int64) * V + v, o.to(kind), mask=v_ok)


def delta_step(
    inputs: Tensor,
    columns: tuple[int, int, int, int, int, int],
    state: Tensor,
    active: Tensor,
    *,
    norm: RMSNorm,
    key_heads: int,
    cut: Cut,
    decay: tuple[Tensor, Tensor] | None,
    gated: bool,
) -> Tensor:
    """Output [B,G*V] of one token, state[B,G,K,V] moving on in the `active`[B] rows. Of
    inputs[B,*], queries, keys, values and the logits of write strength, decay and output gate
    begin at `columns`; decay = (A_log, dt_bias), [G] each."""
    batch, heads, keys, values = state.shape
    out = inputs.new_empty(batch, heads * values)
    here = cut.norm == "here"
    with torch.cuda.device(state.device) if state.is_cuda else nullcontext():
        delta_kernel[(batch * heads, -(-values // cut.columns))](
            inputs,
            *(decay or (None, None)),
            norm.weight,
            state,
            active,
            out,
            early(),
            STRIDE=inputs.stride(0),
            COLUMNS=columns,
            HEADS=heads,
            GROUP=heads // key_heads,
            K=keys,
            V=values,
            BLOCK_K=power_of_2(keys),
            BLOCK_V=cut.columns,
            DECAYS=decay is not None,
            GATED=gated and here,
            HERE=here,
            EPS=norm.eps,
            UNIT_EPS=L2_EPS,
            SCALE=keys**-0.5,
            num_warps=cut.warps,
            **launch_options(),
        )
    return out
