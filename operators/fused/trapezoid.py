"""Mamba-3's recurrence for one token, state in place: norms, biases and rotation of the maps, both
ends of the step, the skip, and the output gate.

Legend: B rows, N heads, G groups, P head width, K state width, S angles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.blocks import PROCESSORS
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import all_asked_for
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import silu
from archsearch.operators.fused.device import softplus
from archsearch.operators.fused.device import tanh
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.heads import STAGES
from archsearch.operators.layer import State

PI = tl.constexpr(math.pi)
# entries of a head's state, which one program holds for one row
MOST_ENTRIES = 32768
# and those it holds at once for several
ENTRIES = 2048
# rows of a state below which too little is done per program
LEAST_ROWS = 8


@dataclass(frozen=True)
class Heads:
    """What a layer has of its heads: norms of the maps [K], their biases [N,K], the bias of the
    time step [N], the skip [N], and the norm of the output, its weight [N*P] and eps, if any."""

    b_norm: RMSNorm
    c_norm: RMSNorm
    b_bias: Tensor
    c_bias: Tensor
    dt_bias: Tensor
    skip: Tensor
    norm: tuple[Tensor, float] | None


@triton.jit
def _normed(value, other, scales, other_scales, K: tl.constexpr, EPS: tl.constexpr, LIKE):
    """The RMS norm of value[K], and that of the entries that these turn with."""
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / K + EPS)
    return (
        rounded(rounded(value * scale, LIKE) * scales, LIKE),
        rounded(rounded(other * scale, LIKE) * other_scales, LIKE),
    )


@triton.jit
def _cos_sin(angle):
    """cos and sin of 0..2 pi in fp32, to 1e-7."""
    # the library's, which take any angle, are many times as long, and all threads compute them
    quarter = tl.floor(angle * (2.0 / PI) + 0.5)
    # pi/2 in three parts, of which the first times a quarter is exact
    x = angle - quarter * 1.5703125
    x = (x - quarter * 4.837512969970703125e-4) - quarter * 7.54978995489188e-8
    z = x * x
    sin = x + x * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    cos = z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    cos = 1.0 - 0.5 * z + z * cos
    turns = quarter.to(tl.int32)
    odd = (turns & 1) == 1
    cos, sin = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    cos = tl.where(((turns + 1) & 2) == 2, -cos, cos)
    return cos, tl.where((turns & 2) == 2, -sin, sin)


@triton.jit(do_not_specialize=["early"])
def trapezoid_kernel(
    inputs,
    b_norm,
    c_norm,
    b_bias,
    c_bias,
    dt_bias,
    skip,
    norm,
    state,
    angles,
    keys,
    values,
    active,
    arrived,
    out,
    early,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILES: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    FLOOR: tl.constexpr,
    EPS: tl.constexpr,
    NORM_EPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns TILES times BLOCK_P rows of one head's state [P,K] in one row of the batch.
    The last of SPLITS that share a head moves its angles and its key on."""
    pid = tl.program_id(0)
    row, head = pid // HEADS, pid % HEADS
    begin = tl.program_id(1) * (TILES * BLOCK_P)
    p, k = begin + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K)
    k_ok, turns = k < K, k < 2 * S
    pair, pair_ok = k ^ 1, (k ^ 1) < K
    tile = state + pid.to(tl.int64) * (P * K) + p[:, None] * K + k[None, :]
    angles += pid * S + k // 2
    keys += pid * K + k
    values += pid * P
    out += pid.to(tl.int64) * P
    kind = out.dtype.element_ty
    wait_if_alone(early, DEPENDENT)
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    # what does not turn has the angle 0
    angle = tl.load(angles, mask=turns, other=0.0, cache_modifier=".cg")
    late_key = tl.load(keys, mask=k_ok, other=0.0, cache_modifier=".cg").to(tl.float32)
    b_scales = tl.load(b_norm + k, mask=k_ok, other=0.0).to(tl.float32)
    b_others = tl.load(b_norm + pair, mask=pair_ok, other=0.0).to(tl.float32)
    c_scales = tl.load(c_norm + k, mask=k_ok, other=0.0).to(tl.float32)
    c_others = tl.load(c_norm + pair, mask=pair_ok, other=0.0).to(tl.float32)
    b_add = tl.load(b_bias + head * K + k, mask=k_ok, other=0.0).to(tl.float32)
    b_add_other = tl.load(b_bias + head * K + pair, mask=pair_ok, other=0.0).to(tl.float32)
    c_add = tl.load(c_bias + head * K + k, mask=k_ok, other=0.0).to(tl.float32)
    c_add_other = tl.load(c_bias + head * K + pair, mask=pair_ok, other=0.0).to(tl.float32)
    longer = tl.load(dt_bias + head).to(tl.float32)
    kept = tl.load(skip + head).to(tl.float32)
    if norm is not None:
        scales = tl.load(norm + head * P + p, mask=p < P, other=0.0).to(tl.float32)
    if TILES == 1:
        # last, since it may change threads as soon as it is there
        mask = (p < P)[:, None] & k_ok[None, :]
        first = tl.load(tile, mask=mask, other=0.0, cache_modifier=".cg")
        first_late = tl.load(values + p, mask=p < P, other=0.0, cache_modifier=".cg")
    last = takes_part
    if SPLITS > 1:
        # a program that comes after all others of its head may overwrite what they have read; the
        # count, which nobody else touches, runs on from step to step
        tl.debug_barrier()
        others = tl.atomic_add(arrived + pid, 1, sem="acq_rel", scope="gpu")
        last = takes_part & ((others & (SPLITS - 1)) == SPLITS - 1)
    wait(DEPENDENT)
    here = inputs + row.to(tl.int64) * STRIDE
    # all at once: what is loaded behind a sum over threads would come a round trip later
    b_at = here + COLUMNS[2] + head // GROUP * K
    c_at = here + COLUMNS[3] + head // GROUP * K
    b = tl.load(b_at + k, mask=k_ok, other=0.0).to(tl.float32)
    b_other = tl.load(b_at + pair, mask=pair_ok, other=0.0).to(tl.float32)
    c = tl.load(c_at + k, mask=k_ok, other=0.0).to(tl.float32)
    c_other = tl.load(c_at + pair, mask=pair_ok, other=0.0).to(tl.float32)
    gates, new = here + COLUMNS[0] + head * P, here + COLUMNS[1] + head * P
    if TILES == 1:
        first_gate = tl.load(gates + p, mask=p < P, other=0.0)
        first_new = tl.load(new + p, mask=p < P, other=0.0)
    turn = tl.load(here + COLUMNS[7] + k // 2, mask=turns, other=0.0).to(tl.float32)
    dt = tl.load(here + COLUMNS[4] + head).to(tl.float32)
    rate = tl.load(here + COLUMNS[5] + head).to(tl.float32)
    weight = tl.load(here + COLUMNS[6] + head).to(tl.float32)
    all_asked_for(early, DEPENDENT)
    dt, rate, weight = softplus(dt + longer), softplus(rate), tl.sigmoid(weight)
    decay = tl.exp(-tl.maximum(rate, FLOOR) * dt)
    angle += tanh(turn) * PI * dt
    angle -= tl.floor(angle / (2 * PI)) * (2 * PI)
    cos, sin = _cos_sin(angle)
    sin = tl.where(k % 2 == 0, -sin, sin)
    b, b_other = _normed(b, b_other, b_scales, b_others, K, EPS, kind)
    c, c_other = _normed(c, c_other, c_scales, c_others, K, EPS, kind)
    key = (b + b_add) * cos + (b_other + b_add_other) * sin
    query = (c + c_add) * cos + (c_other + c_add_other) * sin
    for i in tl.range(0, TILES, num_stages=STAGES):
        at = i * BLOCK_P + p
        ok = at < P
        mask = ok[:, None] & k_ok[None, :]
        rows = tile + i * (BLOCK_P * K)
        s = first if TILES == 1 else tl.load(rows, mask=mask, other=0.0)
        late = first_late if TILES == 1 else tl.load(values + at, mask=ok, other=0.0)
        v = first_new if TILES == 1 else tl.load(new + at, mask=ok, other=0.0)
        z = first_gate if TILES == 1 else tl.load(gates + at, mask=ok, other=0.0)
        v = v.to(tl.float32)
        late = decay * dt * (1.0 - weight) * late.to(tl.float32)
        s = decay * s.to(tl.float32) + late[:, None] * late_key[None, :]
        s += (dt * weight * v)[:, None] * key[None, :]
        y = tl.sum(s * query[None, :], 1) + kept * v
        if norm is not None:
            y = rounded(y, kind)
            y = y * (1.0 / tl.sqrt(tl.sum(y * y, 0) / P + NORM_EPS)) * scales
        tl.store(out + at, (y * silu(z.to(tl.float32))).to(kind), mask=ok)
        tl.store(rows, s.to(state.dtype.element_ty), mask=mask & takes_part)
    # all threads have what the last token left before one of them overwrites it
    tl.debug_barrier()
    tl.store(angles, angle, mask=turns & (k % 2 == 0) & last)
    tl.store(keys, key.to(keys.dtype.element_ty), mask=k_ok & last)
    every = begin + tl.arange(0, TILES * BLOCK_P)
    v = first_new if TILES == 1 else tl.load(new + every, mask=every < P, other=0.0)
    tl.store(values + every, v.to(values.dtype.element_ty), mask=(every < P) & takes_part)


def trapezoid_step(
    inputs: Tensor,
    columns: tuple[int, ...],
    state: State,
    active: Tensor,
    *,
    heads: Heads,
    num_groups: int,
    floor: float,
) -> Tensor:
    """Output [B,N*P] of one token, normed and times silu(z); the state moves on in the `active`[B]
    rows. Of inputs[B,*], z, x, B, C, time steps, decays, trapezoid weights and angles begin at
    `columns`; no head decays more slowly than `floor` a unit of time."""
    ssm, angles = state["ssm"], state["angle"]
    batch, count, width, entries = ssm.shape
    weight, eps = heads.norm or (None, 0.0)
    share, columns_held, splits = power_of_2(width), power_of_2(entries), 1
    # the norm of an output needs the whole head
    while weight is None and share > LEAST_ROWS and batch * count * splits < PROCESSORS // 2:
        share, splits = share // 2, 2 * splits
    # one row's share is there before its inputs are
    rows = share
    while batch > 1 and weight is None and rows > 1 and rows * columns_held > ENTRIES:
        rows //= 2
    arrived = None
    if splits > 1:
        arrived = state.shared.get("arrived")
        if arrived is None:
            arrived = torch.zeros(batch * count, dtype=torch.int32, device=ssm.device)
            state.shared["arrived"] = arrived
    out = inputs.new_empty(batch, count * width)
    with on_device(ssm):
        trapezoid_kernel[(batch * count, splits)](
            inputs,
            heads.b_norm.weight,
            heads.c_norm.weight,
            heads.b_bias,
            heads.c_bias,
            heads.dt_bias,
            heads.skip,
            weight,
            ssm,
            angles,
            state["k"],
            state["v"],
            active,
            arrived,
            out,
            early(),
            STRIDE=inputs.stride(0),
            COLUMNS=columns,
            HEADS=count,
            GROUP=count // num_groups,
            P=width,
            K=entries,
            S=angles.shape[2],
            BLOCK_P=rows,
            BLOCK_K=columns_held,
            TILES=share // rows,
            SPLITS=splits,
            STAGES=STAGES,
            FLOOR=floor,
            EPS=heads.b_norm.eps,
            NORM_EPS=eps,
            num_warps=min(max(rows * columns_held // 512, 1), 16),
            **launch_options(),
        )
    return out
