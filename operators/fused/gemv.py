"""The product of one row with weights that are read once: the workhorse of a decode step.

Several matrices share a launch (their programs follow one another), the norm before them is
computed on the way in, and what follows them on the way out, so that nothing is copied and
nothing cached: whatever a weight is when the kernel runs counts. `gemm` serves several rows.

Legend: M = 1 row of the batch, N rows of a weight, K columns of it, W width of a norm.
"""

from __future__ import annotations

import triton
import triton.language as tl

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


@triton.jit
def _fetch(x, gate, added, k, K: tl.constexpr):
    """Columns k of one input, of its gate and of what is added to its norm (the input, where
    there is none), as they lie in memory."""
    ok = k < K
    value = tl.load(x + k, mask=ok, other=0.0)
    opened, more = value, value
    if gate is not None:
        opened = tl.load(gate + k, mask=ok, other=0.0)
    if added is not None:
        more = tl.load(added + k, mask=ok, other=0.0)
    return value, opened, more


@triton.jit
def _norm_weight(norm, norm_bias, k, K: tl.constexpr, W: tl.constexpr):
    """Columns k of the norm's weights and biases; anything, where there is no norm."""
    weight = tl.zeros([1], tl.float32)
    bias = weight
    if norm_bias is not None:
        weight = tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        bias = tl.load(norm_bias + k, mask=k < K, other=0.0).to(tl.float32)
    elif W > 0:
        weight = tl.load(norm + k % W, mask=k < K, other=0.0).to(tl.float32)
    return weight, bias


@triton.jit
def _prepared(
    value,
    weight,
    bias,
    opened,
    more,
    GATED: tl.constexpr,
    OPENED: tl.constexpr,
    CENTRED: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    EPS: tl.constexpr,
    LIKE: tl.constexpr,
):
    """What `_fetch` and `_norm_weight` brought as (the input [K] in fp32, normed and gated, but
    not yet scaled where an RMS norm is as wide as the input; its squares, which give that
    scale)."""
    value = value.to(tl.float32)
    square = value * value
    if CENTRED:
        # as torch's group norm, which rounds once
        heads = tl.reshape(value, [value.shape[0] // W, W])
        heads -= tl.sum(heads, 1)[:, None] / W
        scale = 1.0 / tl.sqrt(tl.sum(heads * heads, 1) / W + EPS)
        value = tl.reshape(heads * scale[:, None], [value.shape[0]])
        value = rounded(value * weight + bias, LIKE)
        value = rounded(value + more.to(tl.float32), LIKE)
    elif W == K:
        value = value * weight
    elif W > 0:
        # whole heads, as `RMSNorm` norms them
        heads = tl.reshape(value, [value.shape[0] // W, W])
        scale = 1.0 / tl.sqrt(tl.sum(heads * heads, 1) / W + EPS)
        value = rounded(tl.reshape(heads * scale[:, None], [value.shape[0]]), LIKE)
        value = rounded(value * weight, LIKE)
    if GATED:
        opened = opened.to(tl.float32)
        if not OPENED:
            opened = rounded(silu(opened), LIKE)
        value = value * opened
        if CENTRED or W != K:
            value = rounded(value, LIKE)
    return value, square


@triton.jit(do_not_specialize=["early"])
def vector_kernel(
    x,
    norm,
    norm_bias,
    added,
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
    K: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    COUNT: tl.constexpr,
    CONVS: tl.constexpr,
    TAPS: tl.constexpr,
    EACH: tl.constexpr,
    OPENED: tl.constexpr,
    W: tl.constexpr,
    EPS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The first tile of the weights is on its way before the input is there. With EACH there is
    one input per weight, and CENTRED tells a group norm with biases, and something added after
    it, from an RMS norm."""
    CENTRED: tl.constexpr = norm_bias is not None
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
    if EPILOGUE == "swiglu":
        up_tile = weight_tile(weights[1] + offsets, n_ok, k, K, EVEN)
        up_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    if CONVS > 0:
        in_conv = ok & (pid < STARTS[CONVS])
        past = chosen(pid, conv_states, STARTS, CONVS)
        taps = chosen(pid, conv_weights, STARTS, CONVS)
        conv_bias = None if conv_biases is None else chosen(pid, conv_biases, STARTS, CONVS)
        x3, x2, x1, w3, w2, w1, w0, b0 = window(past, taps, conv_bias, m, n, in_conv, size, TAPS)
    scales, biased = _norm_weight(norm, norm_bias, k, K, W)
    if EACH:
        x = chosen(pid, x, STARTS, COUNT)
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
    value, opened, more = _fetch(x, gate, added, k, K)
    for at in tl.static_range(0, K, BLOCK_K):
        now, input_now, opened_now, more_now = tile, value, opened, more
        scales_now, biased_now = scales, biased
        if EPILOGUE == "swiglu":
            up_now = up_tile
        if at + BLOCK_K < K:
            then = offsets + (at + BLOCK_K)
            tile = weight_tile(weight + then, n_ok, at + BLOCK_K + k, K, EVEN)
            if EPILOGUE == "swiglu":
                up_tile = weight_tile(weights[1] + then, n_ok, at + BLOCK_K + k, K, EVEN)
            value, opened, more = _fetch(x, gate, added, at + BLOCK_K + k, K)
            scales, biased = _norm_weight(norm, norm_bias, at + BLOCK_K + k, K, W)
        given, square = _prepared(
            input_now,
            scales_now,
            biased_now,
            opened_now,
            more_now,
            gate is not None,
            OPENED,
            CENTRED,
            K,
            W,
            EPS,
            kind,
        )
        squares += square
        acc += now.to(tl.float32) * given[None, :]
        if EPILOGUE == "swiglu":
            up_acc += up_now.to(tl.float32) * given[None, :]
    y = tl.sum(acc, 1)[None, :]
    up = y
    if EPILOGUE == "swiglu":
        up = tl.sum(up_acc, 1)[None, :]
    if W == K and not CENTRED:
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / K + EPS)
        y, up = y * scale, up * scale
    if CONVS > 0:
        y = rounded(y, kind)
        shift(past, y, x2, x1, m, n, in_conv & takes_part[:, None], size, TAPS)
        y = tl.where(in_conv, silu(x3 * w3 + x2 * w2 + x1 * w1 + y * w0 + b0), y)
    finish(y, up, other, takes_part, out, m, n, ok, column, OUT_STRIDE, EPILOGUE)
