"""Linear attention with decay for one token, state in place: rotary positions or low-rank decay
gates inside, and the norm of the heads where a program holds a whole one.

Legend: B rows, N heads, K key width, V value width, R rank of the gates.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import all_asked_for
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import softplus
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.heads import STAGES
from archsearch.operators.fused.heads import Cut
from archsearch.operators.fused.heads import angles
from archsearch.operators.fused.heads import at_once
from archsearch.operators.fused.heads import few
from archsearch.operators.fused.heads import few_columns
from archsearch.operators.fused.heads import from_few
from archsearch.operators.fused.heads import from_many
from archsearch.operators.fused.heads import holds
from archsearch.operators.fused.heads import norm_head
from archsearch.operators.fused.heads import partner
from archsearch.operators.fused.heads import turned
from archsearch.operators.fused.heads import warps_for


@dataclass(frozen=True)
class Fixed:
    """Decay exp(log_decay[N]); queries and keys turned by cos and sin[T,K/2] at position[B]."""

    log_decay: Tensor
    cos: Tensor
    sin: Tensor
    position: Tensor


@dataclass(frozen=True)
class Gates:
    """Decay sigmoid(up r + bias) ** (1 / normalizer) by key of r[R]: up[N*K,R], bias[N*K]."""

    up: Tensor
    bias: Tensor
    normalizer: float


@triton.jit(do_not_specialize=["early", "length"])
def linear_kernel(
    inputs,
    log_decay,
    cos,
    sin,
    position,
    up,
    bias,
    norm,
    state,
    active,
    out,
    early,
    length,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    R: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NORMALIZER: tl.constexpr,
    HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    HELD: tl.constexpr,
    WHOLE: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns TILES times BLOCK_V columns of one head's state [K,V] in one row."""
    pid = tl.program_id(0)
    row, head = pid // HEADS, pid % HEADS
    k = tl.arange(0, BLOCK_K)
    v = tl.program_id(1) * (TILES * BLOCK_V) + tl.arange(0, BLOCK_V)
    k_ok = k < K
    tile = state + pid.to(tl.int64) * (K * V) + k[:, None] * V + v[None, :]
    out += pid.to(tl.int64) * V
    kind = out.dtype.element_ty
    wait_if_alone(early, DEPENDENT)
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    if cos is not None:
        place = tl.load(position + row, cache_modifier=".cg").to(tl.int32)
        table = tl.minimum(place, length - 1) * (K // 2)
        by_cos, by_sin = angles(cos + table, sin + table, k, K)
        log = tl.load(log_decay + head)
    else:
        channels = head * K + k
        rest = tl.load(bias + channels, mask=k_ok, other=0.0)
        if HELD:
            weight = few_columns(up, channels, k_ok, R, BLOCK_R)
    if TILES == 1:
        # last, since it may change threads as soon as it is there
        mask = k_ok[:, None] & (v < V)[None, :]
        first = tl.load(tile, mask=mask, other=0.0, cache_modifier=".cg")
    wait(DEPENDENT)
    # all at once: what is loaded behind a sum over threads would come a round trip later
    here = inputs + row.to(tl.int64) * STRIDE
    q_at, k_at = here + COLUMNS[0] + head * K, here + COLUMNS[1] + head * K
    query = tl.load(q_at + k, mask=k_ok, other=0.0)
    key = tl.load(k_at + k, mask=k_ok, other=0.0)
    if TILES == 1:
        value = tl.load(here + COLUMNS[2] + head * V + v, mask=v < V, other=0.0).to(tl.float32)
    if cos is not None:
        pair = partner(k, K)
        q_other = tl.load(q_at + pair, mask=k_ok, other=0.0)
        k_other = tl.load(k_at + pair, mask=k_ok, other=0.0)
    elif HELD:
        r = few(here + COLUMNS[4], R, BLOCK_R)
    all_asked_for(early, DEPENDENT)
    query, key = query.to(tl.float32), key.to(tl.float32)
    if cos is not None:
        q_other, k_other = q_other.to(tl.float32), k_other.to(tl.float32)
        query = turned(query, q_other, by_cos, by_sin, k, K, kind)
        key = turned(key, k_other, by_cos, by_sin, k, K, kind)
        decay = tl.exp(log + tl.zeros([BLOCK_K], tl.float32))
    else:
        if HELD:
            logit = from_few(r, weight, 0.0)
        else:
            logit = from_many(here + COLUMNS[4], up, channels, k_ok, R, BLOCK_R, "", kind)
        logit = rounded(logit + rest.to(tl.float32), kind)
        decay = tl.exp(-softplus(-logit) / NORMALIZER)
    for i in tl.range(0, TILES, num_stages=STAGES):
        at = i * BLOCK_V
        v_ok = at + v < V
        mask = k_ok[:, None] & v_ok[None, :]
        s = first if TILES == 1 else tl.load(tile + at, mask=mask, other=0.0)
        if TILES > 1:
            value = here + COLUMNS[2] + head * V + at + v
            value = tl.load(value, mask=v_ok, other=0.0).to(tl.float32)
        s = s.to(tl.float32) * decay[:, None] + key[:, None] * value[None, :]
        o = tl.sum(s * query[:, None], 0) * SCALE
        tl.store(tile + at, s.to(state.dtype.element_ty), mask=mask & takes_part)
        tl.store(out + at + v, o.to(kind), mask=v_ok)
    if WHOLE:
        norm_head(out, norm, here + COLUMNS[3] + head * V, V, BLOCK_HEAD, EPS, True)


def linear_step(
    inputs: Tensor,
    columns: tuple[int, int, int, int, int],
    state: Tensor,
    active: Tensor,
    *,
    norm: RMSNorm,
    cut: Cut,
    decay: Fixed | Gates,
) -> Tensor:
    """Output [B,N*V] of one token, state[B,N,K,V] moving on in the `active`[B] rows. Of
    inputs[B,*], queries, keys, values, output gate and r (of `Gates`) begin at `columns`."""
    batch, heads, keys, values = state.shape
    out = inputs.new_empty(batch, heads * values)
    fixed, gates = (decay, None) if isinstance(decay, Fixed) else (None, decay)
    rank = gates.up.shape[1] if gates else 0
    rows, ranks = power_of_2(keys), power_of_2(rank)
    held = rank > 0 and not cut.whole and holds(rows * ranks)
    with on_device(state):
        linear_kernel[(batch * heads, -(-values // (cut.tiles * cut.columns)))](
            inputs,
            *((fixed.log_decay, fixed.cos, fixed.sin, fixed.position) if fixed else (None,) * 4),
            *((gates.up, gates.bias) if gates else (None, None)),
            norm.weight,
            state,
            active,
            out,
            early(),
            len(fixed.cos) if fixed else 0,
            STRIDE=inputs.stride(0),
            COLUMNS=columns,
            R=rank,
            BLOCK_R=ranks if held else at_once(rows, rank),
            NORMALIZER=gates.normalizer if gates else 1.0,
            HEADS=heads,
            K=keys,
            V=values,
            BLOCK_K=rows,
            BLOCK_V=cut.columns,
            BLOCK_HEAD=power_of_2(values),
            TILES=cut.tiles,
            STAGES=STAGES,
            HELD=held,
            WHOLE=cut.whole,
            EPS=norm.eps,
            SCALE=keys**-0.5,
            num_warps=max(cut.warps, warps_for(rows * ranks)) if held else cut.warps,
            **launch_options(),
        )
    return out
