"""Products of several rows with weights that are read once, by tensor cores, and what stands
around them: the norm before, the convolutions and the sum of a product's shares after.

The weights are the left operand, whose rows tensor cores take 64 at a time; the batch's few rows
are the right one's columns. `gemv` serves one row.

Legend: M rows of the batch, N rows of a weight, K columns of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archsearch.operators.fused.device import let_next_start
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import silu
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.device import wait_only
from archsearch.operators.fused.parts import chosen
from archsearch.operators.fused.parts import constant
from archsearch.operators.fused.parts import finish
from archsearch.operators.fused.parts import owned
from archsearch.operators.fused.parts import shift
from archsearch.operators.fused.parts import weight_tile
from archsearch.operators.fused.parts import window


@triton.jit(do_not_specialize=["early"])
def norm_kernel(
    x,
    norm,
    out,
    early,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The RMS norm of one row x[K], rounded as `RMSNorm` rounds it."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    ok = k < K
    kind = out.dtype.element_ty
    let_next_start(DEPENDENT)
    wait_if_alone(early, DEPENDENT)
    weight = tl.load(norm + k, mask=ok, other=0.0).to(tl.float32)
    wait_only(DEPENDENT)
    value = tl.load(x + row * STRIDE + k, mask=ok, other=0.0).to(tl.float32)
    value = value * (1.0 / tl.sqrt(tl.sum(value * value, 0) / K + EPS))
    tl.store(out + row * K + k, (rounded(value, kind) * weight).to(kind), mask=ok)


@triton.jit(do_not_specialize=["early"])
def matrix_kernel(
    x,
    weights,
    biases,
    h,
    active,
    inverse,
    out,
    early,
    batch,
    K: tl.constexpr,
    X_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    COUNT: tl.constexpr,
    EACH: tl.constexpr,
    EPILOGUE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """BLOCK_M rows times BLOCK_N of the weights, whose first tile is on its way before the input
    is there. A program whose columns are one of SPLITS shares leaves its part of the sums in
    `out` for `gather_kernel`. With EACH there is one input per weight."""
    pid = tl.program_id(0)
    weight, first, column, size = owned(pid, weights, SIZES, STARTS, COUNT)
    kind = weight.dtype.element_ty
    begin = (pid - first) * BLOCK_N
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = begin + tl.arange(0, BLOCK_N)
    m_ok, n_ok = m < batch, n < size
    ok = m_ok[:, None] & n_ok[None, :]
    m = tl.minimum(m, batch - 1)
    inside = tl.minimum(n, size - 1).to(tl.int64) * K
    rows = weight + inside
    k = tl.arange(0, BLOCK_K)
    SHARE: tl.constexpr = (K + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS) * BLOCK_K
    start = tl.program_id(2) * SHARE
    end = tl.minimum(start + SHARE, K)
    wait_if_alone(early, DEPENDENT)
    tile = weight_tile(rows[:, None] + (start + k)[None, :], n_ok, start + k, K, EVEN)
    if EPILOGUE == "swiglu":
        up_rows = weights[1] + inside
        up_tile = weight_tile(up_rows[:, None] + (start + k)[None, :], n_ok, start + k, K, EVEN)
    bias = None if biases is None else chosen(pid, biases, STARTS, COUNT)
    other = constant(bias, inverse, n, n_ok, EPILOGUE)
    if EACH:
        x = chosen(pid, x, STARTS, COUNT)
    wait(DEPENDENT)
    inputs = x + m[:, None].to(tl.int64) * X_STRIDE + k[None, :]
    value = tl.trans(_columns(inputs, start, k, K, EVEN).to(kind))
    acc = tl.dot(tile, value, input_precision="ieee")
    up_acc = acc
    if EPILOGUE == "swiglu":
        up_acc = tl.dot(up_tile, value, input_precision="ieee")
    for at in tl.range(start + BLOCK_K, end, BLOCK_K):
        tile = weight_tile(rows[:, None] + (at + k)[None, :], n_ok, at + k, K, EVEN)
        value = tl.trans(_columns(inputs, at, k, K, EVEN).to(kind))
        acc = tl.dot(tile, value, acc, input_precision="ieee")
        if EPILOGUE == "swiglu":
            up_tile = weight_tile(up_rows[:, None] + (at + k)[None, :], n_ok, at + k, K, EVEN)
            up_acc = tl.dot(up_tile, value, up_acc, input_precision="ieee")
    if SPLITS > 1:
        part = out + tl.program_id(2).to(tl.int64) * batch * OUT_STRIDE
        places = m[:, None].to(tl.int64) * OUT_STRIDE + n[None, :]
        tl.store(part + places, tl.trans(acc), mask=ok)
    else:
        y, up = tl.trans(acc), tl.trans(up_acc)
        takes_part = m >= 0
        if active is not None:
            takes_part = tl.load(active + m).to(tl.int1)
        if EPILOGUE == "residual":
            other = tl.load(
                h + m[:, None].to(tl.int64) * OUT_STRIDE + n[None, :], mask=ok, other=0.0
            )
            other = other.to(tl.float32)
        finish(y, up, other, takes_part, out, m, n, ok, column, OUT_STRIDE, EPILOGUE)


@triton.jit
def _columns(inputs, at, k, K: tl.constexpr, EVEN: tl.constexpr):
    """Columns at + k of all rows of the input."""
    if EVEN:
        value = tl.load(inputs + at)
    else:
        value = tl.load(inputs + at, mask=(at + k < K)[None, :], other=0.0)
    return value


@triton.jit(do_not_specialize=["early"])
def conv_kernel(
    y,
    weights,
    biases,
    states,
    active,
    early,
    STRIDE: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    COUNT: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The short convolutions with SiLU of one row of projections, in place in y[B,*]."""
    pid = tl.program_id(1)
    state, first, column, size = owned(pid, states, SIZES, STARTS, COUNT)
    taps = chosen(pid, weights, STARTS, COUNT)
    bias = None if biases is None else chosen(pid, biases, STARTS, COUNT)
    kind = y.dtype.element_ty
    row = tl.program_id(0)
    m = row + tl.arange(0, 1)
    n = (pid - first) * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = (n < size)[None, :]
    let_next_start(DEPENDENT)
    wait_if_alone(early, DEPENDENT)
    x3, x2, x1, w3, w2, w1, w0, b0 = window(state, taps, bias, m, n, ok, size, TAPS)
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    here = y + row.to(tl.int64) * STRIDE + (column + n)[None, :]
    wait_only(DEPENDENT)
    new = tl.load(here, mask=ok, other=0.0).to(tl.float32)
    shift(state, new, x2, x1, m, n, ok & takes_part, size, TAPS)
    tl.store(here, silu(x3 * w3 + x2 * w2 + x1 * w1 + new * w0 + b0).to(kind), mask=ok)


@triton.jit
def gather_kernel(
    parts,
    h,
    active,
    out,
    batch,
    N: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Add what SPLITS shares of a product left in parts[SPLITS,B,N] to one row of h[B,N]."""
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = n < N
    kind = out.dtype.element_ty
    here = row.to(tl.int64) * N + n
    let_next_start(DEPENDENT)
    wait_only(DEPENDENT)
    y = tl.zeros([BLOCK_N], tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(parts + split * batch.to(tl.int64) * N + here, mask=ok, other=0.0)
    other = tl.load(h + here, mask=ok, other=0.0).to(tl.float32)
    y = tl.where(tl.load(active + row).to(tl.int1), other + rounded(y, kind), other)
    tl.store(out + here, y.to(kind), mask=ok)
