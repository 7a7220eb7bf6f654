"""Mamba's selective scan for one token, state in place: time steps from their low rank, decay from
its logarithms, the skip, and the output gate.

Legend: B rows, D inner width, K state width, R rank of the time steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.fused.blocks import PROCESSORS
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import silu
from archsearch.operators.fused.device import softplus
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.heads import ENTRIES
from archsearch.operators.fused.heads import warps_for

# channels below which memory is read in pieces too small
LEAST_CHANNELS = 8


@dataclass(frozen=True)
class Channels:
    """What a layer has of each channel: the matrix [D,R] and the bias [D] of the time steps,
    the logarithms [D,K] of the rates of decay, and the skip [D]."""

    dt_weight: Tensor
    dt_bias: Tensor
    a_log: Tensor
    skip: Tensor


@triton.jit(do_not_specialize=["early"])
def scan_kernel(
    inputs,
    selected,
    dt_weight,
    dt_bias,
    a_log,
    skip,
    state,
    active,
    out,
    early,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns BLOCK_D channels of the state [D,K] in one row of the batch."""
    row = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    k, r = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_R)
    d_ok, k_ok, r_ok = d < D, k < K, r < R
    mask = d_ok[:, None] & k_ok[None, :]
    inside = d[:, None] * K + k[None, :]
    tile = state + row.to(tl.int64) * (D * K) + inside
    kind = out.dtype.element_ty
    wait_if_alone(early, DEPENDENT)
    s = tl.load(tile, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    up = dt_weight + d[:, None] * R + r[None, :]
    up = tl.load(up, mask=d_ok[:, None] & r_ok[None, :], other=0.0).to(tl.float32)
    rate = -tl.exp(tl.load(a_log + inside, mask=mask, other=0.0).to(tl.float32))
    bias = tl.load(dt_bias + d, mask=d_ok, other=0.0).to(tl.float32)
    kept = tl.load(skip + d, mask=d_ok, other=0.0).to(tl.float32)
    wait(DEPENDENT)
    here = inputs + row.to(tl.int64) * STRIDE + d
    u = tl.load(here, mask=d_ok, other=0.0).to(tl.float32)
    z = tl.load(here + D, mask=d_ok, other=0.0).to(tl.float32)
    low = tl.zeros([BLOCK_R], tl.float32)
    b, c = tl.zeros([BLOCK_K], tl.float32), tl.zeros([BLOCK_K], tl.float32)
    for split in tl.static_range(SPLITS):
        maps = selected + (split * tl.num_programs(0) + row).to(tl.int64) * (R + 2 * K)
        low += tl.load(maps + r, mask=r_ok, other=0.0).to(tl.float32)
        b += tl.load(maps + R + k, mask=k_ok, other=0.0).to(tl.float32)
        c += tl.load(maps + R + K + k, mask=k_ok, other=0.0).to(tl.float32)
    low, b, c = rounded(low, kind), rounded(b, kind), rounded(c, kind)
    dt = softplus(rounded(tl.sum(up * low[None, :], 1), kind) + bias)
    s = s * tl.exp(dt[:, None] * rate) + (dt * u)[:, None] * b[None, :]
    y = rounded(tl.sum(s * c[None, :], 1), kind)
    y = rounded(y + u * kept, kind) * rounded(silu(z), kind)
    tl.store(tile, s.to(state.dtype.element_ty), mask=mask & takes_part)
    tl.store(out + row.to(tl.int64) * D + d, y.to(kind), mask=d_ok)


def scan_step(
    inputs: Tensor, selected: Tensor, state: Tensor, active: Tensor, *, channels: Channels
) -> Tensor:
    """Output [B,D] of one token, times silu(z); state[B,D,K] moves on in the `active`[B] rows.
    inputs[B,2D] are u and z side by side, selected[*,B,R+2K] the time steps' low rank, B and C, in
    parts that are added up."""
    batch, width, entries = state.shape
    rank = channels.dt_weight.shape[1]
    held = max(power_of_2(entries), power_of_2(rank))
    rows = power_of_2(width)
    while rows > LEAST_CHANNELS and (
        rows * held > ENTRIES or batch * (width // rows) < PROCESSORS // 2
    ):
        rows //= 2
    out = inputs.new_empty(batch, width)
    with on_device(state):
        scan_kernel[(batch, -(-width // rows))](
            inputs,
            selected,
            channels.dt_weight,
            channels.dt_bias,
            channels.a_log,
            channels.skip,
            state,
            active,
            out,
            early(),
            STRIDE=inputs.stride(0),
            D=width,
            K=entries,
            R=rank,
            SPLITS=len(selected),
            BLOCK_D=rows,
            BLOCK_K=power_of_2(entries),
            BLOCK_R=power_of_2(rank),
            num_warps=warps_for(rows * held),
            **launch_options(),
        )
    return out
