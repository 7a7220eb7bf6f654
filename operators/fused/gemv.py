"""Products of a few rows with weights that are read once: the workhorse of a decode step.

Several matrices share a launch (their programs follow one another), the norm before them is
computed on the way in, and what follows them on the way out, so that nothing is copied and
nothing cached: whatever a weight is when the kernel runs counts.

`vector_kernel` serves one row by sums of products, `matrix_kernel` several by tensor cores.

Legend: M rows of the batch, N rows of a weight, K columns of it, W width of a norm.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archsearch.operators.fused.device import prefetch
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import silu
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.parts import chosen
from archsearch.operators.fused.parts import constant
from archsearch.operators.fused.parts import finish
from archsearch.operators.fused.parts import owned
from archsearch.operators.fused.parts import shift
from archsearch.operators.fused.parts import weight_tile
from archsearch.operators.fused.parts import window

# values of one cache line at least
LINE = tl.constexpr(32)


@triton.jit
def _fetch(x, norm, gate, k, K: tl.constexpr, W: tl.constexpr):
    """Columns k of one input, of its norm's weights, and of its gate, as they lie in memory;
    where there is none of these, the input."""
    ok = k < K
    value = tl.load(x + k, mask=ok, other=0.0)
    weight, opened = value, value
    if W > 0:
        weight = tl.load(norm + k % W, mask=ok, other=0.0)
    if gate is not None:
        opened = tl.load(gate + k, mask=ok, other=0.0)
    return value, weight, opened


@triton.jit
def _prepared(
    value,
    weight,
    opened,
    GATED: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    EPS: tl.constexpr,
    LIKE: tl.constexpr,
):
    """What `_fetch` brought as (the input [K] in fp32, normed and gated, but not yet scaled where
    the norm is as wide as the input; its squares, which give that scale)."""
    value = value.to(tl.float32)
    square = value * value
    if W == K:
        value = value * weight.to(tl.float32)
    elif W > 0:
        # whole heads, as `RMSNorm` norms them
        heads = tl.reshape(value, [value.shape[0] // W, W])
        scale = 1.0 / tl.sqrt(tl.sum(heads * heads, 1) / W + EPS)
        value = rounded(tl.reshape(heads * scale[:, None], [value.shape[0]]), LIKE)
        value = rounded(value * weight.to(tl.float32), LIKE)
    if GATED:
        value = value * rounded(silu(opened.to(tl.float32)), LIKE)
        if W != K:
            value = rounded(value, LIKE)
    return value, square


@triton.jit(do_not_specialize=["early"])
def vector_kernel(
    x,
    norm,
    gate,
    weights,
    biases,
    conv_weights,
    conv_biases,
    conv_states,
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
    CONVS: tl.constexpr,
    TAPS: tl.constexpr,
    W: tl.constexpr,
    NORM_LINES: tl.constexpr,
    EPS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One row: the first tile of the weights is on its way before the input is there, and AHEAD
    columns after it to the L2."""
    pid = tl.program_id(0)
    weight, first, column, size = owned(pid, weights, SIZES, STARTS, COUNT)
    kind = weight.dtype.element_ty
    begin = (pid - first) * BLOCK_N
    lanes = tl.arange(0, BLOCK_N)
    m, n = tl.arange(0, 1), begin + lanes
    k = tl.arange(0, BLOCK_K)
    n_ok = n < size
    ok = n_ok[None, :]
    offsets = begin.to(tl.int64) * K + (lanes[:, None] * K + k[None, :])
    wait_if_alone(early, DEPENDENT)
    tile = weight_tile(weight + offsets, n_ok, k, K, EVEN)
    if DEPENDENT and AHEAD > 0:
        inside = tl.minimum(lanes, size - 1 - begin)[:, None] * K
        lines = (BLOCK_K + tl.arange(0, AHEAD // LINE) * LINE) % K
        prefetch(weight + begin.to(tl.int64) * K + inside + lines[None, :])
    if EPILOGUE == "swiglu":
        up_tile = weight_tile(weights[1] + offsets, n_ok, k, K, EVEN)
        up_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    if CONVS > 0:
        in_conv = ok & (pid < STARTS[CONVS])
        past = chosen(pid, conv_states, STARTS, CONVS)
        taps = chosen(pid, conv_weights, STARTS, CONVS)
        conv_bias = None if conv_biases is None else chosen(pid, conv_biases, STARTS, CONVS)
        x3, x2, x1, w3, w2, w1, w0, b0 = window(past, taps, conv_bias, m, n, in_conv, size, TAPS)
    if DEPENDENT and W > 0:
        prefetch(norm + tl.arange(0, NORM_LINES) * LINE % W)
    bias = None if biases is None else chosen(pid, biases, STARTS, COUNT)
    other = constant(bias, inverse, n, n_ok, EPILOGUE)
    wait(DEPENDENT)
    if EPILOGUE == "residual":
        other = tl.load(h + m[:, None] * OUT_STRIDE + n[None, :], mask=ok, other=0.0)
        other = other.to(tl.float32)
    takes_part = m >= 0
    if active is not None:
        takes_part = tl.load(active + m).to(tl.int1)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    value, scales, opened = _fetch(x, norm, gate, k, K, W)
    for at in tl.static_range(0, K, BLOCK_K):
        now, input_now, scales_now, opened_now = tile, value, scales, opened
        if EPILOGUE == "swiglu":
            up_now = up_tile
        if at + BLOCK_K < K:
            then = offsets + (at + BLOCK_K)
            tile = weight_tile(weight + then, n_ok, at + BLOCK_K + k, K, EVEN)
            if EPILOGUE == "swiglu":
                up_tile = weight_tile(weights[1] + then, n_ok, at + BLOCK_K + k, K, EVEN)
            value, scales, opened = _fetch(x, norm, gate, at + BLOCK_K + k, K, W)
        given, square = _prepared(
            input_now, scales_now, opened_now, gate is not None, K, W, EPS, kind
        )
        squares += square
        acc += now.to(tl.float32) * given[None, :]
        if EPILOGUE == "swiglu":
            up_acc += up_now.to(tl.float32) * given[None, :]
    y = tl.sum(acc, 1)[None, :]
    up = y
    if EPILOGUE == "swiglu":
        up = tl.sum(up_acc, 1)[None, :]
    if W == K:
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / K + EPS)
        y, up = y * scale, up * scale
    if CONVS > 0:
        y = rounded(y, kind)
        shift(past, y, x2, x1, m, n, in_conv & takes_part[:, None], size, TAPS)
        y = tl.where(in_conv, silu(x3 * w3 + x2 * w2 + x1 * w1 + y * w0 + b0), y)
    finish(y, up, other, takes_part, out, m, n, ok, column, OUT_STRIDE, EPILOGUE)


@triton.jit
def _scales(x, m, m_ok, K: tl.constexpr, STRIDE: tl.constexpr, EPS, BLOCK_K: tl.constexpr):
    """1 / the root mean square of every row x[M,K]."""
    k = tl.arange(0, BLOCK_K)
    squares = tl.zeros([m.shape[0], BLOCK_K], tl.float32)
    for at in tl.range(0, K, BLOCK_K):
        mask = m_ok[:, None] & (at + k < K)[None, :]
        value = tl.load(x + m[:, None] * STRIDE + (at + k)[None, :], mask=mask, other=0.0)
        squares += value.to(tl.float32) * value.to(tl.float32)
    return 1.0 / tl.sqrt(tl.sum(squares, 1) / K + EPS)


@triton.jit(do_not_specialize=["early"])
def matrix_kernel(
    x,
    norm,
    gate,
    weights,
    biases,
    conv_weights,
    conv_biases,
    conv_states,
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
    CONVS: tl.constexpr,
    TAPS: tl.constexpr,
    W: tl.constexpr,
    NORM_LINES: tl.constexpr,
    EPS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Rows in tiles of BLOCK_M; AHEAD columns of the weights go to the L2 before the input is
    there. `gate` is none: who has several rows norms heads where they are made. A program whose
    columns are one of SPLITS shares leaves its part of the sums (and of the squares, behind them)
    in `out` for `gather_kernel`."""
    pid = tl.program_id(0)
    weight, first, column, size = owned(pid, weights, SIZES, STARTS, COUNT)
    kind = weight.dtype.element_ty
    begin = (pid - first) * BLOCK_N
    lanes = tl.arange(0, BLOCK_N)
    m, n = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M), begin + lanes
    k = tl.arange(0, BLOCK_K)
    m_ok, n_ok = m < batch, n < size
    ok = m_ok[:, None] & n_ok[None, :]
    m = tl.minimum(m, batch - 1)
    weight += begin.to(tl.int64) * K
    offsets = lanes[:, None] * K + k[None, :]
    wait_if_alone(early, DEPENDENT)
    SHARE: tl.constexpr = (K + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS) * BLOCK_K
    start = tl.program_id(2) * SHARE
    if DEPENDENT and AHEAD > 0:
        inside = tl.minimum(lanes, size - 1 - begin)[:, None] * K
        lines = inside + ((start + tl.arange(0, AHEAD // LINE) * LINE) % K)[None, :]
        prefetch(weight + lines)
        if EPILOGUE == "swiglu":
            prefetch(weights[1] + begin.to(tl.int64) * K + lines)
    if CONVS > 0:
        in_conv = ok & (pid < STARTS[CONVS])
        past = chosen(pid, conv_states, STARTS, CONVS)
        taps = chosen(pid, conv_weights, STARTS, CONVS)
        conv_bias = None if conv_biases is None else chosen(pid, conv_biases, STARTS, CONVS)
        if DEPENDENT and TAPS > 1:
            inside = (m[:, None].to(tl.int64) * size + n[None, :]) * (TAPS - 1)
            prefetch(past + tl.where(in_conv, inside, 0))
            prefetch(taps + tl.where(in_conv, n[None, :] * TAPS, 0))
    if DEPENDENT and W > 0:
        prefetch(norm + tl.arange(0, NORM_LINES) * LINE % W)
    bias = None if biases is None else chosen(pid, biases, STARTS, COUNT)
    other = constant(bias, inverse, n, n_ok, EPILOGUE)
    wait(DEPENDENT)
    if EPILOGUE == "residual":
        other = tl.load(h + m[:, None] * OUT_STRIDE + n[None, :], mask=ok, other=0.0)
        other = other.to(tl.float32)
    takes_part = m >= 0
    if active is not None:
        takes_part = tl.load(active + m).to(tl.int1)
    # 16-bit floats of the other kind could overflow where the scale comes last
    SCALE_FIRST: tl.constexpr = W == K and kind == tl.float16
    if SCALE_FIRST:
        scale = _scales(x, m, m_ok, K, X_STRIDE, EPS, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    inputs = x + m[:, None] * X_STRIDE + k[None, :]
    for at in tl.range(start, tl.minimum(start + SHARE, K), BLOCK_K):
        mask = m_ok[:, None] if EVEN else m_ok[:, None] & (at + k < K)[None, :]
        value = tl.load(inputs + at, mask=mask, other=0.0)
        if W == K:
            value = value.to(tl.float32)
            if SCALE_FIRST:
                value = value * scale[:, None]
            else:
                squares += value * value
            value = value * tl.load(norm + at + k, mask=at + k < K, other=0.0).to(tl.float32)
        value = value.to(kind)
        tile = weight_tile(weight + offsets + at, n_ok, at + k, K, EVEN)
        acc = tl.dot(value, tl.trans(tile), acc, input_precision="ieee")
        if EPILOGUE == "swiglu":
            tile = weights[1] + begin.to(tl.int64) * K + offsets + at
            tile = weight_tile(tile, n_ok, at + k, K, EVEN)
            up = tl.dot(value, tl.trans(tile), up, input_precision="ieee")
    if SPLITS > 1:
        part = out + tl.program_id(2).to(tl.int64) * batch * (OUT_STRIDE + 1)
        places = m[:, None].to(tl.int64) * OUT_STRIDE + n[None, :]
        tl.store(part + places, acc, mask=ok)
        # all programs of these rows and columns have the same
        tl.store(part + batch * OUT_STRIDE + m, tl.sum(squares, 1), mask=m_ok)
    else:
        y = acc
        if W == K and not SCALE_FIRST:
            scale = 1.0 / tl.sqrt(tl.sum(squares, 1) / K + EPS)
            y, up = y * scale[:, None], up * scale[:, None]
        if CONVS > 0:
            x3, x2, x1, w3, w2, w1, w0, b0 = window(
                past, taps, conv_bias, m, n, in_conv, size, TAPS
            )
            y = rounded(y, kind)
            shift(past, y, x2, x1, m, n, in_conv & takes_part[:, None], size, TAPS)
            y = tl.where(in_conv, silu(x3 * w3 + x2 * w2 + x1 * w1 + y * w0 + b0), y)
        finish(y, up, other, takes_part, out, m, n, ok, column, OUT_STRIDE, EPILOGUE)


@triton.jit
def gather_kernel(
    parts,
    h,
    active,
    out,
    batch,
    N: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    SCALED: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Add what SPLITS shares of a product left in parts[SPLITS, B*N + B] to one row of h[B,N]."""
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = n < N
    kind = out.dtype.element_ty
    wait(DEPENDENT)
    y = tl.zeros([BLOCK_N], tl.float32)
    square = 0.0
    for split in tl.static_range(SPLITS):
        part = parts + split * batch.to(tl.int64) * (N + 1)
        y += tl.load(part + row.to(tl.int64) * N + n, mask=ok, other=0.0)
        square += tl.load(part + batch.to(tl.int64) * N + row)
    if SCALED:
        y = y * (1.0 / tl.sqrt(square / K + EPS))
    here = row.to(tl.int64) * N + n
    other = tl.load(h + here, mask=ok, other=0.0).to(tl.float32)
    y = tl.where(tl.load(active + row).to(tl.int1), other + rounded(y, kind), other)
    tl.store(out + here, y.to(kind), mask=ok)
