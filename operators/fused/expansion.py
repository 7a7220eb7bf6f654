"""What stands around the attention to latents: queries moved to their space, the new latent
written to the cache, and values made of what was seen.

Legend: B rows (M of them in a program), N heads, D width without rotation, P width with rotation,
R latent width, V value width, S slots of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.blocks import PROCESSORS
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import let_next_start
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.device import wait_only
from archsearch.operators.fused.heads import partner
from archsearch.operators.fused.heads import rotated
from archsearch.operators.layer import State

# sizes that tensor cores multiply at least
LEAST = 16
ROWS_HELD = 32
# entries of a head's matrix that a program holds
ENTRIES = 8192
# columns of several rows' products that are read together, and how many such tiles are on their
# way to a program
AT_ONCE = 128
STAGES = 3


@dataclass(frozen=True)
class Latents:
    """How latents become keys and values: their norm, the matrices weight[N*(D+V),R], and the
    widths N, D, P and V."""

    norm: RMSNorm
    weight: Tensor
    heads: int
    plain: int
    turned: int
    values: int


@triton.jit(do_not_specialize=["early", "slots", "length"])
def absorb_kernel(
    queries,
    compressed,
    weight,
    norm,
    cos,
    sin,
    position,
    active,
    cache,
    out,
    early,
    batch,
    slots,
    length,
    Q_STRIDE: tl.constexpr,
    C_STRIDE: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILES: tl.constexpr,
    LATENT: tl.constexpr,
    EPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program multiplies one head's queries by BLOCK_R columns of its keys' matrix; after all
    these, one per row norms and rotates what the cache keeps of the new token."""
    pid = tl.program_id(0)
    products = N * TILES * tl.cdiv(batch, BLOCK_M)
    multiplies = pid < products
    head = pid // TILES % N
    m = pid // (TILES * N) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    r = pid % TILES * BLOCK_R + tl.arange(0, BLOCK_R)
    row = tl.maximum(pid - products, 0)
    i, p = tl.arange(0, LATENT), tl.arange(0, BLOCK_P)
    kind = out.dtype.element_ty
    wait_if_alone(early, DEPENDENT)
    tile = weight + (head * (D + V) + d[:, None]).to(tl.int64) * R + r[None, :]
    mask = (d < D)[:, None] & (r < R)[None, :] & multiplies
    tile = tl.load(tile, mask=mask, other=0.0)
    scales = tl.load(norm + i, mask=(i < R) & (pid >= products), other=0.0).to(tl.float32)
    at = tl.load(position + row, cache_modifier=".cg").to(tl.int32)
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    wait(DEPENDENT)
    if multiplies:
        given = tl.minimum(m, batch - 1)[:, None].to(tl.int64) * Q_STRIDE + head * (D + P)
        given = tl.load(queries + given + d[None, :], mask=(d < D)[None, :], other=0.0)
        if BLOCK_M == 1:
            columns = tl.trans(given.to(tl.float32))
            y = tl.sum(tile.to(tl.float32) * columns, 0)[None, :]
        else:
            y = tl.dot(given, tile, input_precision="ieee")
        places = (m[:, None] * N + head).to(tl.int64) * R + r[None, :]
        tl.store(out + places, y.to(kind), mask=(m < batch)[:, None] & (r < R)[None, :])
    else:
        here = compressed + row.to(tl.int64) * C_STRIDE
        latent = tl.load(here + i, mask=i < R, other=0.0).to(tl.float32)
        latent = latent * (1.0 / tl.sqrt(tl.sum(latent * latent, 0) / R + EPS))
        latent = rounded(latent, kind) * scales
        key = tl.load(here + R + p, mask=p < P, other=0.0).to(tl.float32)
        other = tl.load(here + R + partner(p, P), mask=p < P, other=0.0).to(tl.float32)
        table = tl.minimum(at, length - 1) * (P // 2)
        key = rotated(key, other, cos + table, sin + table, p, P, kind)
        kept = cache + (row.to(tl.int64) * slots + tl.minimum(at, slots - 1)) * (R + P)
        tl.store(kept + i, latent.to(kind), mask=(i < R) & takes_part)
        tl.store(kept + R + p, key.to(kind), mask=(p < P) & takes_part)


@triton.jit
def _merged(parts, sums, at, r, R: tl.constexpr, SPLITS: tl.constexpr):
    """The splits' outputs [R] from `at` on, weighed by the sums of their weights (the largest
    exponent, and the sum below it)."""
    everyone = sums + 2 * (at + tl.arange(0, SPLITS))
    exponents = tl.load(everyone)
    # the first split holds at least one slot: this is finite
    largest = tl.max(exponents, 0)
    total = tl.sum(tl.load(everyone + 1) * tl.exp2(exponents - largest), 0)
    seen = tl.zeros(r.shape, tl.float32)
    for split in tl.static_range(SPLITS):
        part = tl.load(parts + (at + split).to(tl.int64) * R + r, mask=r < R, other=0.0)
        seen += part * tl.exp2(tl.load(sums + 2 * (at + split)) - largest)
    return seen / total


@triton.jit
def merge_kernel(
    parts,
    sums,
    out,
    R: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Merge what the splits left of one head in one row."""
    pid = tl.program_id(0)
    r = tl.arange(0, BLOCK_R)
    let_next_start(DEPENDENT)
    wait_only(DEPENDENT)
    seen = _merged(parts, sums, pid * SPLITS, r, R, SPLITS)
    tl.store(out + pid.to(tl.int64) * R + r, seen.to(out.dtype.element_ty), mask=r < R)


@triton.jit(do_not_specialize=["early"])
def expand_kernel(
    seen,
    parts,
    sums,
    weight,
    out,
    early,
    batch,
    N: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILES: tl.constexpr,
    SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program multiplies what one head has seen by BLOCK_V rows of its values' matrix; one row
    of the batch it merges itself, several are merged already."""
    pid = tl.program_id(0)
    head = pid // TILES
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    v, r = pid % TILES * BLOCK_V + tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_R)
    kind = out.dtype.element_ty
    rows = weight + (head * (D + V) + D + tl.minimum(v, V - 1)).to(tl.int64) * R
    wait_if_alone(early, DEPENDENT)
    if BLOCK_M == 1:
        tile = tl.load(rows[:, None] + r[None, :], mask=(r < R)[None, :], other=0.0)
        wait(DEPENDENT)
        merged = rounded(_merged(parts, sums, head * SPLITS, r, R, SPLITS), kind)
        y = tl.sum(tile.to(tl.float32) * merged[None, :], 1)[None, :]
    else:
        wait(DEPENDENT)
        given = seen + (tl.minimum(m, batch - 1) * N + head)[:, None].to(tl.int64) * R
        y = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
        for begin in tl.range(0, R, BLOCK_R):
            ok = (begin + r < R)[None, :]
            value = tl.load(given + (begin + r)[None, :], mask=ok, other=0.0)
            tile = tl.load(rows[:, None] + (begin + r)[None, :], mask=ok, other=0.0)
            y = tl.dot(value, tl.trans(tile), y, input_precision="ieee")
    places = (m[:, None] * N + head).to(tl.int64) * V + v[None, :]
    tl.store(out + places, y.to(kind), mask=(m < batch)[:, None] & (v < V)[None, :])


def absorb(
    queries: Tensor,
    compressed: Tensor,
    state: State,
    position: Tensor,
    active: Tensor,
    *,
    latents: Latents,
) -> Tensor:
    """The unrotated parts of queries[B,N*(D+P)] times their keys' matrices, [B,N,R]; the new
    token's latent and key, compressed[B,R+P], enter the state's cache in the `active`[B] rows,
    at position[B]."""
    cache, cos = state["cache"], state.shared["cos"]
    batch, slots, _ = cache.shape
    heads, plain, rank = latents.heads, latents.plain, latents.weight.shape[1]
    rows, row_blocks = _rows(batch)
    width = max(power_of_2(plain), LEAST)
    columns = _share(rank, width, heads * row_blocks)
    tiles = -(-rank // columns)
    out = queries.new_empty(batch, heads, rank)
    with on_device(cache):
        absorb_kernel[(heads * tiles * row_blocks + batch,)](
            queries,
            compressed,
            latents.weight,
            latents.norm.weight,
            cos,
            state.shared["sin"],
            position,
            active,
            cache,
            out,
            early(),
            batch,
            slots,
            len(cos),
            Q_STRIDE=queries.stride(0),
            C_STRIDE=compressed.stride(0),
            N=heads,
            D=plain,
            P=latents.turned,
            V=latents.values,
            R=rank,
            BLOCK_M=rows,
            BLOCK_D=width,
            BLOCK_P=power_of_2(latents.turned),
            BLOCK_R=columns,
            TILES=tiles,
            LATENT=power_of_2(rank),
            EPS=latents.norm.eps,
            num_warps=4,
            **launch_options(),
        )
    return out


def expand(parts: Tensor, sums: Tensor, *, latents: Latents) -> Tensor:
    """Values [B,N*V] of what the splits saw, parts[B,N,*,R], whose weights' sums are
    sums[B,N,*,2] (the largest exponent, and the sum below it)."""
    batch, heads, splits, rank = parts.shape
    values, weight = latents.values, latents.weight
    rows, row_blocks = _rows(batch)
    seen = None
    if batch > 1:
        seen = parts.new_empty(batch, heads, rank, dtype=weight.dtype)
        with on_device(parts):
            merge_kernel[(batch * heads,)](
                parts,
                sums,
                seen,
                R=rank,
                BLOCK_R=power_of_2(rank),
                SPLITS=splits,
                num_warps=4,
                **launch_options(),
            )
    held = max(power_of_2(rank), LEAST)
    held = held if batch == 1 else min(held, AT_ONCE)
    columns = _share(values, held, heads * row_blocks)
    tiles = -(-values // columns)
    out = parts.new_empty(batch, heads * values, dtype=weight.dtype)
    with on_device(parts):
        expand_kernel[(heads * tiles, row_blocks)](
            seen,
            parts,
            sums,
            weight,
            out,
            early(),
            batch,
            N=heads,
            D=latents.plain,
            V=values,
            R=rank,
            BLOCK_M=rows,
            BLOCK_V=columns,
            BLOCK_R=held,
            TILES=tiles,
            SPLITS=splits,
            num_warps=4,
            num_stages=STAGES,
            **launch_options(),
        )
    return out


def _rows(batch: int) -> tuple[int, int]:
    """How many rows a program takes, and how many programs that makes."""
    rows = 1 if batch == 1 else min(max(power_of_2(batch), LEAST), ROWS_HELD)
    return rows, -(-batch // rows)


def _share(size: int, other: int, programs: int) -> int:
    """How many of `size` rows or columns of `other` entries a program takes, where each share of
    them is that of `programs` programs."""
    share = max(power_of_2(size), LEAST)
    while share > LEAST and (share * other > ENTRIES or programs * (size // share) < PROCESSORS):
        share //= 2
    return share
