"""Launching the products of `gemv` and `gemm`: what stands before and after them, by name.

Legend: B rows, H hidden size, K input width, N output width, C channels, W width of a norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from archsearch.operators.common.conv import ShortConv
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.blocks import Blocks
from archsearch.operators.fused.blocks import blocks_for
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.gemm import conv_kernel
from archsearch.operators.fused.gemm import gather_kernel
from archsearch.operators.fused.gemm import matrix_kernel
from archsearch.operators.fused.gemm import norm_kernel
from archsearch.operators.fused.gemv import vector_kernel
from archsearch.operators.fused.heads import Cut

# inputs of a convolution that the kernels hold
MOST_TAPS = 4
# columns that a program adds up the parts of, and channels that it convolves
GATHERED = 512
CONVOLVED = 512


@dataclass(frozen=True)
class Norm:
    """An RMS norm with weights [W] over every W inputs (all of them: `of`)."""

    weight: Tensor
    eps: float

    @property
    def width(self) -> int:
        """W."""
        return len(self.weight)

    @classmethod
    def of(cls, norm: RMSNorm) -> Norm:
        """The norm of a module."""
        return cls(norm.weight, norm.eps)


@dataclass(frozen=True)
class Centred:
    """A group norm with weights and biases [K] over every `width` inputs, and added[1,K] to what
    it gives."""

    weight: Tensor
    bias: Tensor
    eps: float
    width: int
    added: Tensor


@dataclass(frozen=True)
class Convs:
    """Short convolutions with SiLU behind the first projections, their states [B,C,taps-1]."""

    modules: Sequence[ShortConv]
    states: Sequence[Tensor]


def project(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    norm: Norm | None = None,
    biases: Sequence[Tensor] | None = None,
    convs: Convs | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """norm(x[B,K]) times each of the weights[N,K], side by side in one [B, sum of N]; the
    convolutions' states move on in the `active`[B] rows."""
    out = x.new_empty(len(x), sum(len(weight) for weight in weights), dtype=weights[0].dtype)
    _launch(x, weights, out, "store", norm, biases=biases, convs=convs, active=active)
    return out


def project_parts(x: Tensor, weight: Tensor) -> Tensor:
    """x[B,K] times weight[N,K] as [S,B,N]: S shares of the columns, for the kernel that reads them
    to add up and round. Few rows of weights keep more programs busy that way."""
    if len(x) == 1:
        return project(x, (weight,))[None]
    rows, width = weight.shape
    with on_device(x):
        splits = blocks_for("parts", len(x), rows, width, weight.dtype).splits
    out = x.new_empty(splits, len(x), rows, dtype=torch.float32)
    _launch(x, (weight,), out, "parts", None)
    return out


def project_each(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Each of the inputs x[G,B,K] times its own of the weights[N,K], side by side in one
    [B, sum of N]."""
    out = x.new_empty(x.shape[1], sum(len(weight) for weight in weights))
    _launch(x, weights, out, "store", None)
    return out


def feed_forward(x: Tensor, gate: Tensor | None, up: Tensor, norm: Norm) -> Tensor:
    """silu(gate y) * up y, or without a gate relu(up y)^2, in [B,N] of y = norm(x[B,K])."""
    weights = (up,) if gate is None else (gate, up)
    out = x.new_empty(len(x), len(up))
    _launch(x, weights, out, "relu2" if gate is None else "swiglu", norm)
    return out


def write_back(
    x: Tensor,
    weight: Tensor,
    h: Tensor,
    active: Tensor,
    *,
    norm: Norm | Centred | None = None,
    gate: Tensor | None = None,
    opened: bool = False,
) -> Tensor:
    """h[B,H] plus weight[H,K] times x[B,K] in the `active`[B] rows, h in the others; x normed
    and then multiplied by silu(gate[B,K]) first, where they are given (`opened`: by the gate as
    it is)."""
    out = torch.empty_like(h)
    _launch(x, (weight,), out, "residual", norm, gate=gate, opened=opened, h=h, active=active)
    return out


def project_heads(
    o: Tensor,
    weight: Tensor,
    h: Tensor,
    active: Tensor,
    *,
    plan: Cut,
    norm: RMSNorm,
    gate: Tensor | None = None,
    opened: bool = False,
) -> Tensor:
    """`write_back` of the heads' outputs o[B,N*V], normed and multiplied by silu(gate[B,N*V])
    (`opened`: by the gate) where the kernel that made them has not done so."""
    if plan.whole:
        return write_back(o, weight, h, active)
    return write_back(o, weight, h, active, norm=Norm.of(norm), gate=gate, opened=opened)


def logits(x: Tensor, weight: Tensor, norm: Norm, inverse_norms: Tensor | None) -> Tensor:
    """fp32 logits[B,V] of norm(x[B,H]), times `inverse_norms`[V]."""
    out = x.new_empty(len(x), len(weight), dtype=torch.float32)
    _launch(x, (weight,), out, "head", norm, inverse=inverse_norms)
    return out


def _launch(
    x: Tensor,
    weights: Sequence[Tensor],
    out: Tensor,
    epilogue: str,
    norm: Norm | Centred | None,
    *,
    gate: Tensor | None = None,
    opened: bool = False,
    biases: Sequence[Tensor] | None = None,
    convs: Convs | None = None,
    h: Tensor | None = None,
    active: Tensor | None = None,
    inverse: Tensor | None = None,
) -> None:
    given = _Given(tuple(weights), None if biases is None else tuple(biases), h, active, inverse)
    # the blocks are those of the device where it runs
    with on_device(x):
        if x.shape[-2] == 1:
            _vector(x, out, epilogue, norm, given, gate, opened, convs)
            return
        assert gate is None and not isinstance(norm, Centred), (
            "several rows are gated and normed by head where they are made"
        )
        _matrix(x if norm is None else _normed(x, norm, weights[0].dtype), out, epilogue, given)
        if convs is not None:
            _convolve(out, convs, active)


@dataclass(frozen=True)
class _Given:
    """What a product of one row and of several alike is given beside its input."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] | None
    h: Tensor | None
    active: Tensor | None
    inverse: Tensor | None

    def blocks(self, epilogue: str, batch: int, width: int) -> Blocks:
        rows = sum(len(weight) for weight in self.weights)
        return blocks_for(epilogue, batch, rows, width, self.weights[0].dtype)


def _vector(
    x: Tensor,
    out: Tensor,
    epilogue: str,
    norm: Norm | Centred | None,
    given: _Given,
    gate: Tensor | None,
    opened: bool,
    convs: Convs | None,
) -> None:
    """One row."""
    width = x.shape[-1]
    blocks = given.blocks(epilogue, 1, width)
    if norm is not None and (norm.width < width or isinstance(norm, Centred)):
        # whole heads at a time
        blocks = replace(blocks, k=max(blocks.k, norm.width))
    programs, options = _layout(x, out, epilogue, given.weights, blocks)
    centred = norm if isinstance(norm, Centred) else None
    vector_kernel[(programs,)](
        tuple(x) if x.dim() == 3 else x,
        None if norm is None else norm.weight,
        None if centred is None else centred.bias,
        None if centred is None else centred.added,
        gate,
        given.weights,
        given.biases,
        *_conv_tensors(convs),
        given.h,
        given.active,
        given.inverse,
        out,
        early(),
        CONVS=0 if convs is None else len(convs.modules),
        TAPS=0 if convs is None else convs.modules[0].kernel,
        OPENED=opened,
        W=0 if norm is None else norm.width,
        EPS=0.0 if norm is None else norm.eps,
        **options,
    )


def _matrix(x: Tensor, out: Tensor, epilogue: str, given: _Given) -> None:
    """Several rows."""
    batch, width = x.shape[-2:]
    blocks = given.blocks(epilogue, batch, width)
    programs, options = _layout(x, out, epilogue, given.weights, blocks)
    splits = blocks.splits if epilogue in ("residual", "parts") else 1
    parts = None
    if epilogue == "residual" and splits > 1:
        parts = x.new_empty(splits, *out.shape, dtype=torch.float32)
    # the last share may be empty
    share = -(-width // (blocks.k * splits)) * blocks.k
    options["EVEN"] = options["EVEN"] and (splits - 1) * share < width
    matrix_kernel[(programs, -(-batch // blocks.m), splits)](
        tuple(x) if x.dim() == 3 else x,
        given.weights,
        given.biases,
        given.h,
        given.active,
        given.inverse,
        out if parts is None else parts,
        early(),
        batch,
        X_STRIDE=x.stride(-2),
        BLOCK_M=blocks.m,
        SPLITS=splits,
        **options,
    )
    if parts is not None:
        gather_kernel[(batch, -(-out.shape[1] // GATHERED))](
            parts,
            given.h,
            given.active,
            out,
            batch,
            N=out.shape[1],
            SPLITS=splits,
            BLOCK_N=GATHERED,
            num_warps=4,
            **launch_options(),
        )


def _layout(
    x: Tensor, out: Tensor, epilogue: str, weights: Sequence[Tensor], blocks: Blocks
) -> tuple[int, dict[str, Any]]:
    """How many programs there are, and what both kernels are told: how the programs are dealt
    to the matrices, among other things."""
    width = x.shape[-1]
    # gate and up are one: a program takes the same rows of both
    sizes = [len(weight) for weight in (weights[:1] if epilogue == "swiglu" else weights)]
    ends = list(accumulate(-(-size // blocks.n) for size in sizes))
    return ends[-1], {
        "K": width,
        "OUT_STRIDE": out.stride(-2),
        "SIZES": tuple(sizes),
        "STARTS": (0, *ends),
        "COUNT": len(sizes),
        "EVEN": width % blocks.k == 0 and all(size % blocks.n == 0 for size in sizes),
        "BLOCK_N": blocks.n,
        "BLOCK_K": blocks.k,
        "EACH": x.dim() == 3,
        "EPILOGUE": epilogue,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        **launch_options(),
    }


def _convolve(y: Tensor, convs: Convs, active: Tensor | None) -> None:
    """Replace the first columns of y[B,*], one part after another, by their convolutions."""
    sizes = [len(module.weight) for module in convs.modules]
    ends = list(accumulate(-(-size // CONVOLVED) for size in sizes))
    weights, biases, states = _conv_tensors(convs)
    conv_kernel[(len(y), ends[-1])](
        y,
        weights,
        biases,
        states,
        active,
        early(),
        STRIDE=y.stride(0),
        SIZES=tuple(sizes),
        STARTS=(0, *ends),
        COUNT=len(sizes),
        TAPS=convs.modules[0].kernel,
        BLOCK_N=CONVOLVED,
        num_warps=4,
        **launch_options(),
    )


def _normed(x: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """norm(x[B,K])."""
    out = x.new_empty(x.shape, dtype=dtype)
    block = power_of_2(x.shape[1])
    norm_kernel[(len(x),)](
        x,
        norm.weight,
        out,
        early(),
        K=x.shape[1],
        STRIDE=x.stride(0),
        EPS=norm.eps,
        BLOCK_K=block,
        num_warps=min(max(block // 256, 1), 16),
        **launch_options(),
    )
    return out


def _conv_tensors(convs: Convs | None) -> tuple[Any, Any, Any]:
    """Weights, biases and states, as the kernels take them."""
    if convs is None:
        return None, None, None
    biases = [module.bias for module in convs.modules]
    return (
        tuple(module.weight for module in convs.modules),
        None if biases[0] is None else tuple(biases),
        tuple(convs.states),
    )
