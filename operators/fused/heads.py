"""Parts of the kernels that work on heads, and how a head is cut into programs.

Legend: B rows, N heads, K key width, V value width, D width of a rotated vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl

from archsearch.operators.fused.blocks import PROCESSORS
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import silu

# entries of a state that one program holds
MOST_ENTRIES = 32768
# columns of a state below which memory is read in pieces too small
LEAST_COLUMNS = 16
# widths that `gemv` can norm head by head on its way in
WIDEST_NORM = 512


@dataclass(frozen=True, slots=True)
class Cut:
    """Programs of `columns` state columns each, with `warps`; the heads' norm is computed by the
    kernel itself ("here"), by the product after it ("after"), or by torch between ("apart")."""

    columns: int
    warps: int
    norm: Literal["here", "after", "apart"]


def cut(batch: int, heads: int, keys: int, values: int) -> Cut:
    """How to cut states [B,N,K,V]: one row alone is spread over the GPU, several are not."""
    columns, rows = power_of_2(values), power_of_2(keys)
    if batch == 1 and columns == values and values <= WIDEST_NORM:
        while columns > LEAST_COLUMNS and heads * (values // columns) < PROCESSORS // 2:
            columns //= 2
        where: Literal["here", "after", "apart"] = "after"
    else:
        where = "here"
    if rows * columns > MOST_ENTRIES:
        where = "after" if where == "after" else "apart"
        columns = max(MOST_ENTRIES // rows, 1)
    return Cut(columns, warps_for(rows * columns), where)


def warps_for(entries: int) -> int:
    """So many warps that a thread holds some 32 entries of a tile."""
    return min(max(power_of_2(entries) // 1024, 1), 16)


@triton.jit
def head_output(
    o,
    norm,
    gate,
    v,
    ok,
    V: tl.constexpr,
    EPS: tl.constexpr,
    HERE: tl.constexpr,
    LIKE: tl.constexpr,
):
    """o[V] as it leaves the kernel: as it is, or normed and multiplied by silu(gate)."""
    if HERE:
        o = tl.where(ok, rounded(o, LIKE), 0.0)
        o = rounded(o * (1.0 / tl.sqrt(tl.sum(o * o, 0) / V + EPS)), LIKE)
        o = rounded(o * tl.load(norm + v, mask=ok, other=0.0).to(tl.float32), LIKE)
        if gate is not None:
            opened = silu(tl.load(gate + v, mask=ok, other=0.0).to(tl.float32))
            o = o * rounded(opened, LIKE)
    return o


@triton.jit
def rotated(x, other, cos, sin, d, D: tl.constexpr, LIKE: tl.constexpr):
    """x[...,D] turned, where `other` holds each entry's partner D/2 away; cos and sin point to
    the tables [D/2] of the position."""
    angle = d % (D // 2)
    ok = d < D
    c = rounded(tl.load(cos + angle, mask=ok, other=0.0), LIKE)
    s = rounded(tl.load(sin + angle, mask=ok, other=0.0), LIKE)
    s = tl.where(d < D // 2, -s, s)
    return rounded(rounded(x * c, LIKE) + rounded(other * s, LIKE), LIKE)


@triton.jit
def partner(d, D: tl.constexpr):
    """The entry that a rotation pairs with entry d."""
    return tl.where(d < D // 2, d + D // 2, d - D // 2)
