"""Parts of the kernels that work on heads, and how a head is cut into programs.

Legend: B rows, N heads, K key width, V value width, D width of a rotated vector, M outputs of a
projection and R its inputs, which are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from archsearch.operators.fused.blocks import PROCESSORS
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import silu
from archsearch.operators.fused.device import tanh

# entries of a state that a program holds at once
ENTRIES = 4096
# columns of a state below which memory is read in pieces too small
LEAST_COLUMNS = 16
# widths that `gemv` can norm head by head on its way in
WIDEST_NORM = 512
# entries of weights that a program holds before its inputs are there
MOST_HELD = 20480
# tiles of a state on their way to a program that works through several
STAGES = 3


@dataclass(frozen=True, slots=True)
class Cut:
    """Programs of `tiles` times `columns` state columns each, with `warps`; `whole`: that is the
    head, whose norm the program computes too. Otherwise the product after it does."""

    columns: int
    tiles: int
    warps: int
    whole: bool


def cut(batch: int, heads: int, keys: int, values: int) -> Cut:
    """How to cut states [B,N,K,V]: one row alone is spread over the GPU, several are not."""
    columns, rows = power_of_2(values), power_of_2(keys)
    whole = batch > 1 or columns != values or values > WIDEST_NORM
    while columns > LEAST_COLUMNS and (
        rows * columns > ENTRIES or (not whole and heads * (values // columns) < PROCESSORS // 2)
    ):
        columns //= 2
    tiles = -(-values // columns) if whole else 1
    return Cut(columns, tiles, warps_for(rows * columns), whole)


def warps_for(entries: int) -> int:
    """So many warps that a thread holds some 32 entries of a tile."""
    return min(max(power_of_2(entries) // 1024, 1), 8)


def holds(*entries: int) -> bool:
    """Whether a program can hold tiles of so many weights."""
    return sum(entries) <= MOST_HELD


def at_once(rows: int, rank: int) -> int:
    """Columns of `rows` rows of a projection back from a low rank that a program looks at
    together, where it does not hold them all."""
    return min(power_of_2(rank), max(ENTRIES // rows, LEAST_COLUMNS))


@triton.jit
def norm_head(
    out,
    norm,
    gate,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
    GATED: tl.constexpr,
    OPENED: tl.constexpr = False,
):
    """Replace a head's outputs [V], which this program has written, by their RMS norm, times
    silu(gate) where there is one (`OPENED`: times what it has written to `gate`)."""
    kind = out.dtype.element_ty
    v = tl.arange(0, BLOCK)
    ok = v < V
    # what other threads of the program wrote
    tl.debug_barrier()
    o = tl.load(out + v, mask=ok, other=0.0).to(tl.float32)
    scales = tl.load(norm + v, mask=ok, other=0.0).to(tl.float32)
    if GATED:
        opened = tl.load(gate + v, mask=ok, other=0.0).to(tl.float32)
    o = rounded(o * (1.0 / tl.sqrt(tl.sum(o * o, 0) / V + EPS)), kind)
    o = rounded(o * scales, kind)
    if GATED:
        if not OPENED:
            opened = rounded(silu(opened), kind)
        o = o * opened
    tl.debug_barrier()
    tl.store(out + v, o.to(kind), mask=ok)


@triton.jit
def few(x, R: tl.constexpr, BLOCK_R: tl.constexpr, AT: tl.constexpr = 0):
    """The R inputs (from AT on) of a projection back from a low rank, in fp32."""
    r = AT + tl.arange(0, BLOCK_R)
    return tl.load(x + r, mask=r < R, other=0.0).to(tl.float32)


@triton.jit
def few_columns(weight, m, ok, R: tl.constexpr, BLOCK_R: tl.constexpr, AT: tl.constexpr = 0):
    """Rows m[M] of such a projection's weights, [M,R] (columns from AT on)."""
    r = AT + tl.arange(0, BLOCK_R)
    mask = ok[:, None] & (r < R)[None, :]
    return tl.load(weight + m[:, None] * R + r[None, :], mask=mask, other=0.0)


@triton.jit
def from_few(x, weight, bias):
    """Its outputs [M] in fp32."""
    return tl.sum(weight.to(tl.float32) * x[None, :], 1) + bias


@triton.jit
def from_many(
    x,
    weight,
    m,
    ok,
    R: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GATE: tl.constexpr,
    LIKE: tl.constexpr,
):
    """`from_few` of x[R], BLOCK_R columns at a time; what `GATE` names is applied to x first."""
    total = tl.zeros([m.shape[0]], tl.float32)
    for at in tl.static_range(0, R, BLOCK_R):
        part = few(x, R, BLOCK_R, at)
        if GATE == "sigmoid":
            part = rounded(tl.sigmoid(part), LIKE)
        elif GATE == "tanh":
            part = rounded(tanh(part), LIKE)
        total += from_few(part, few_columns(weight, m, ok, R, BLOCK_R, at), 0.0)
    return total


@triton.jit
def angles(cos, sin, d, D: tl.constexpr):
    """cos and sin of what entries d turn by, out of the tables [D/2] of the position."""
    angle = d % (D // 2)
    ok = d < D
    return tl.load(cos + angle, mask=ok, other=0.0), tl.load(sin + angle, mask=ok, other=0.0)


@triton.jit
def turned(x, other, cos, sin, d, D: tl.constexpr, LIKE: tl.constexpr):
    """x[...,D] turned by such `angles`, where `other` holds each entry's partner D/2 away."""
    c, s = rounded(cos, LIKE), rounded(sin, LIKE)
    s = tl.where(d < D // 2, -s, s)
    return rounded(rounded(x * c, LIKE) + rounded(other * s, LIKE), LIKE)


@triton.jit
def rotated(x, other, cos, sin, d, D: tl.constexpr, LIKE: tl.constexpr):
    """The same where cos and sin point to the tables."""
    c, s = angles(cos, sin, d, D)
    return turned(x, other, c, s, d, D, LIKE)


@triton.jit
def partner(d, D: tl.constexpr):
    """The entry that a rotation pairs with entry d."""
    return tl.where(d < D // 2, d + D // 2, d - D // 2)
