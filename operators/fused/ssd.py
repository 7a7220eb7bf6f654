"""Mamba-2's recurrence for one token, state in place: time step and decay from their logits, the
skip, and the output gate.

Legend: B rows, N heads, G groups, P head width, K state width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.fused.blocks import PROCESSORS
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import all_asked_for
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

# rows of a state below which too little is done per program
LEAST_ROWS = 8


@triton.jit(do_not_specialize=["early"])
def ssd_kernel(
    inputs,
    a_log,
    dt_bias,
    skip,
    state,
    active,
    out,
    early,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns BLOCK_P rows of one head's state [P,K] in one row of the batch."""
    pid = tl.program_id(0)
    row, head = pid // HEADS, pid % HEADS
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    k = tl.arange(0, BLOCK_K)
    p_ok, k_ok = p < P, k < K
    mask = p_ok[:, None] & k_ok[None, :]
    tile = state + pid.to(tl.int64) * (P * K) + p[:, None] * K + k[None, :]
    wait_if_alone(early, DEPENDENT)
    s = tl.load(tile, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    rate = -tl.exp(tl.load(a_log + head).to(tl.float32))
    bias = tl.load(dt_bias + head).to(tl.float32)
    kept = tl.load(skip + head).to(tl.float32)
    wait(DEPENDENT)
    here = inputs + row.to(tl.int64) * STRIDE
    kind = inputs.dtype.element_ty
    maps = k + (head // GROUP) * K
    x = tl.load(here + COLUMNS[0] + head * P + p, mask=p_ok, other=0.0).to(tl.float32)
    b = tl.load(here + COLUMNS[1] + maps, mask=k_ok, other=0.0)
    c = tl.load(here + COLUMNS[2] + maps, mask=k_ok, other=0.0)
    z = tl.load(here + COLUMNS[3] + head * P + p, mask=p_ok, other=0.0).to(tl.float32)
    dt = tl.load(here + COLUMNS[4] + head).to(tl.float32)
    all_asked_for(early, DEPENDENT)
    b, c, dt = b.to(tl.float32), c.to(tl.float32), softplus(dt + bias)
    s = s * tl.exp(dt * rate) + (dt * x)[:, None] * b[None, :]
    y = rounded(tl.sum(s * c[None, :], 1), kind)
    y = rounded(y + x * kept, kind) * silu(z)
    tl.store(tile, s.to(state.dtype.element_ty), mask=mask & takes_part)
    tl.store(out + pid.to(tl.int64) * P + p, y.to(out.dtype.element_ty), mask=p_ok)


def ssd_step(
    inputs: Tensor,
    columns: tuple[int, int, int, int, int],
    state: Tensor,
    active: Tensor,
    *,
    heads: tuple[Tensor, Tensor, Tensor],
    num_groups: int,
) -> Tensor:
    """Output [B,N*P] of one token, times silu(z) (for one row in fp32); state[B,N,P,K] moves on in
    the `active`[B] rows. Of inputs[B,*], x, B, C, z and the raw time steps begin at `columns`;
    heads = (A_log, dt_bias, D), [N] each."""
    batch, count, width, entries = state.shape
    rows, columns_held = power_of_2(width), power_of_2(entries)
    while rows > LEAST_ROWS and (
        rows * columns_held > ENTRIES or batch * count * (width // rows) < PROCESSORS
    ):
        rows //= 2
    # several rows are read by many programs of the product after this
    kind = torch.float32 if batch == 1 else inputs.dtype
    out = inputs.new_empty(batch, count * width, dtype=kind)
    with on_device(state):
        ssd_kernel[(batch * count, -(-width // rows))](
            inputs,
            *heads,
            state,
            active,
            out,
            early(),
            STRIDE=inputs.stride(0),
            COLUMNS=columns,
            HEADS=count,
            GROUP=count // num_groups,
            P=width,
            K=entries,
            BLOCK_P=rows,
            BLOCK_K=columns_held,
            num_warps=warps_for(rows * columns_held),
            **launch_options(),
        )
    return out
