"""RWKV's blends of this token's normed input and the one before it, which then takes its place.

Legend: B rows, H hidden size, G blends.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import appended
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import let_next_start
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.device import wait_only
from archsearch.operators.fused.products import Norm

# columns of a program, which reads the others too for the norm
COLUMNS = 256


@triton.jit(do_not_specialize=["early"])
def mix_kernel(
    h,
    norm,
    mixes,
    shift,
    active,
    out,
    early,
    batch,
    H: tl.constexpr,
    STRIDE: tl.constexpr,
    BLENDS: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program makes BLOCK_N columns of all blends of one row, and owns them in `shift`."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_H)
    n_ok = n < H
    kind = out.dtype.element_ty
    let_next_start(DEPENDENT)
    wait_if_alone(early, DEPENDENT)
    before = tl.load(shift + row * H + n, mask=n_ok, other=0.0, cache_modifier=".cg")
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    weight = tl.load(norm + n, mask=n_ok, other=0.0).to(tl.float32)
    shares = ()
    for blend in tl.static_range(BLENDS):
        share = tl.load(mixes + blend * H + n, mask=n_ok, other=0.0)
        shares = appended(shares, share.to(tl.float32))
    wait_only(DEPENDENT)
    every = tl.load(h + row * STRIDE + k, mask=k < H, other=0.0).to(tl.float32)
    x = tl.load(h + row * STRIDE + n, mask=n_ok, other=0.0).to(tl.float32)
    x = x * (1.0 / tl.sqrt(tl.sum(every * every, 0) / H + EPS))
    x = rounded(rounded(x, kind) * weight, kind)
    difference = rounded(rounded(before, kind) - x, kind)
    for blend in tl.static_range(BLENDS):
        here = out + (row + blend * batch) * H + n
        tl.store(here, (x + difference * shares[blend]).to(kind), mask=n_ok)
    # whoever read an entry has it before anybody overwrites it
    tl.debug_barrier()
    tl.store(shift + row * H + n, x.to(shift.dtype.element_ty), mask=n_ok & takes_part)


def mix_step(h: Tensor, norm: Norm, mixes: Tensor, shift: Tensor, active: Tensor) -> Tensor:
    """x + (shift - x) * mixes[G,H] in [G,B,H] of x = norm(h[B,H]), which becomes shift[B,H] in the
    `active`[B] rows."""
    batch, width = h.shape
    out = h.new_empty(len(mixes), batch, width)
    block = power_of_2(width)
    with on_device(h):
        mix_kernel[(batch, -(-width // COLUMNS))](
            h,
            norm.weight,
            mixes,
            shift,
            active,
            out,
            early(),
            batch,
            H=width,
            STRIDE=h.stride(0),
            BLENDS=len(mixes),
            EPS=norm.eps,
            BLOCK_H=block,
            BLOCK_N=COLUMNS,
            num_warps=4,
            **launch_options(),
        )
    return out
