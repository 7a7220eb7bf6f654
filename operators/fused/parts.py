"""Parts of the matrix-product kernels: which rows a program owns, what comes in, what goes out.

Legend: M rows of the batch, N rows of a weight (channels), K columns of it, as tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import silu


@triton.jit
def owned(pid, tensors, SIZES: tl.constexpr, STARTS: tl.constexpr, COUNT: tl.constexpr):
    """Of `COUNT` matrices that share a launch the one this program works on: (its tensor, its
    first program, its first output column, its rows)."""
    tensor = tensors[0]
    first = 0
    column = 0
    size = SIZES[0]
    before = 0
    for i in tl.static_range(1, COUNT):
        before += SIZES[i - 1]
        inside = pid >= STARTS[i]
        tensor = tl.where(inside, tensors[i], tensor)
        first = tl.where(inside, STARTS[i], first)
        column = tl.where(inside, before, column)
        size = tl.where(inside, SIZES[i], size)
    return tensor, first, column, size


@triton.jit
def chosen(pid, tensors, STARTS: tl.constexpr, COUNT: tl.constexpr):
    """`owned`, of tensors that go with the first `COUNT` matrices; any one for the others."""
    tensor = tensors[0]
    for i in tl.static_range(1, COUNT):
        tensor = tl.where(pid >= STARTS[i], tensors[i], tensor)
    return tensor


@triton.jit
def weight_tile(pointers, n_ok, k, K: tl.constexpr, EVEN: tl.constexpr):
    """Tile [N,K] of a weight that is read once."""
    if EVEN:
        tile = tl.load(pointers, eviction_policy="evict_first")
    else:
        mask = n_ok[:, None] & (k < K)[None, :]
        tile = tl.load(pointers, mask=mask, other=0.0, eviction_policy="evict_first")
    return tile


@triton.jit
def constant(bias, inverse, n, n_ok, EPILOGUE: tl.constexpr):
    """What the epilogue adds or multiplies by and no kernel of the step makes, [1,N] in fp32: a
    bias, or the inverse norms of the head's rows; where there is none, what changes nothing."""
    other = tl.zeros([1, 1], tl.float32)
    if EPILOGUE == "head":
        other = other + 1.0
        if inverse is not None:
            other = tl.load(inverse + n, mask=n_ok, other=0.0)[None, :]
    elif bias is not None:
        other = tl.load(bias + n, mask=n_ok, other=0.0).to(tl.float32)[None, :]
    return other


@triton.jit
def window(state, weight, bias, m, n, ok, channels, TAPS: tl.constexpr):
    """What a causal convolution of channels n needs beside the new input: its inputs three, two
    and one steps ago [M,N] (0 where it has fewer taps), their weights, the new one's, and the
    bias, [1,N] each. The state [B,C,TAPS-1] holds the inputs, oldest first."""
    inputs = state + (m[:, None].to(tl.int64) * channels + n[None, :]) * (TAPS - 1)
    weights = weight + n[None, :] * TAPS
    none = tl.zeros([1, 1], tl.float32)
    x3, x2, x1, w3, w2, w1 = none, none, none, none, none, none
    if TAPS > 3:
        x3 = tl.load(inputs + (TAPS - 4), mask=ok, other=0.0, cache_modifier=".cg")
        w3 = tl.load(weights + (TAPS - 4), mask=ok, other=0.0).to(tl.float32)
    if TAPS > 2:
        x2 = tl.load(inputs + (TAPS - 3), mask=ok, other=0.0, cache_modifier=".cg")
        w2 = tl.load(weights + (TAPS - 3), mask=ok, other=0.0).to(tl.float32)
    if TAPS > 1:
        x1 = tl.load(inputs + (TAPS - 2), mask=ok, other=0.0, cache_modifier=".cg")
        w1 = tl.load(weights + (TAPS - 2), mask=ok, other=0.0).to(tl.float32)
    w0 = tl.load(weights + (TAPS - 1), mask=ok, other=0.0).to(tl.float32)
    if bias is not None:
        none = tl.load(bias + n[None, :], mask=ok, other=0.0).to(tl.float32)
    x3, x2, x1 = x3.to(tl.float32), x2.to(tl.float32), x1.to(tl.float32)
    return x3, x2, x1, w3, w2, w1, w0, none


@triton.jit
def shift(state, y, x2, x1, m, n, ok, channels, TAPS: tl.constexpr):
    """Move the new input y[M,N] into the convolution's state: a channel belongs to one program."""
    inputs = state + (m[:, None].to(tl.int64) * channels + n[None, :]) * (TAPS - 1)
    kind = state.dtype.element_ty
    # whoever read an entry has it before anybody overwrites it
    tl.debug_barrier()
    if TAPS > 3:
        tl.store(inputs + (TAPS - 4), x2.to(kind), mask=ok)
    if TAPS > 2:
        tl.store(inputs + (TAPS - 3), x1.to(kind), mask=ok)
    if TAPS > 1:
        tl.store(inputs + (TAPS - 2), y.to(kind), mask=ok)


@triton.jit
def finish(
    y, up, other, takes_part, out, m, n, ok, column, STRIDE: tl.constexpr, EPILOGUE: tl.constexpr
):
    """Write products y[M,N] (and `up`, those of a gated pair) to columns column + n of `out`;
    `other` is the residual stream, where they are added to it, or `constant`."""
    kind = out.dtype.element_ty
    if EPILOGUE == "swiglu":
        y = rounded(silu(rounded(y, kind)), kind) * rounded(up, kind)
    elif EPILOGUE == "relu2":
        y = tl.maximum(rounded(y, kind), 0.0)
        y = y * y
    elif EPILOGUE == "residual":
        y = tl.where(takes_part[:, None], other + rounded(y, kind), other)
    elif EPILOGUE == "head":
        y = y * other
    else:
        y = y + other
    tl.store(out + m[:, None].to(tl.int64) * STRIDE + (column + n)[None, :], y.to(kind), mask=ok)
