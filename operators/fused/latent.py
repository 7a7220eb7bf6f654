"""One token's softmax attention to the latents of the cache, split over programs.

Legend: B rows, N heads, D width without rotation, P width with rotation, R latent width, S slots
of the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.fused.attend import LEAST_HEADS
from archsearch.operators.fused.attend import splits_for
from archsearch.operators.fused.attend import weighed
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import all_asked_for
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.expansion import LEAST
from archsearch.operators.fused.expansion import Latents
from archsearch.operators.fused.heads import angles
from archsearch.operators.fused.heads import partner
from archsearch.operators.fused.heads import turned
from archsearch.operators.layer import State

# bytes of the cache that a program looks at together, at most so many slots, and how many such
# tiles are on their way to it
TILE_BYTES = 32768
MOST_SLOTS = 32
STAGES = 3


@triton.jit
def _scores(query, rotary, latent, key):
    """What queries [N,R] and their rotated parts [N,P] give with latents [S,R] and keys [S,P]."""
    scores = tl.dot(query, tl.trans(latent), input_precision="ieee")
    return tl.dot(rotary, tl.trans(key), scores, input_precision="ieee")


@triton.jit(do_not_specialize=["early", "slots", "length"])
def latent_kernel(
    inner,
    queries,
    cos,
    sin,
    position,
    cache,
    parts,
    sums,
    early,
    slots,
    length,
    Q_STRIDE: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    R: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    SCALE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns a share of the used slots for BLOCK_N heads of one row."""
    pid, split = tl.program_id(0), tl.program_id(1)
    row = pid // GROUPS
    heads = (pid % GROUPS * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    r, p = tl.arange(0, BLOCK_R)[None, :], tl.arange(0, BLOCK_P)[None, :]
    s = tl.arange(0, BLOCK_S)
    kind = cache.dtype.element_ty
    wait_if_alone(early, DEPENDENT)
    at = tl.load(position + row, cache_modifier=".cg").to(tl.int32)
    count = tl.minimum(at + 1, slots)
    share = tl.cdiv(tl.cdiv(count, BLOCK_S), SPLITS) * BLOCK_S
    end = tl.minimum((split + 1) * share, count)
    cache += row.to(tl.int64) * slots * (R + P)
    table = tl.minimum(at, length - 1) * (P // 2)
    by_cos, by_sin = angles(cos + table, sin + table, p, P)
    # the first tile is on its way before the query is there, but for the slot of this token,
    # which the kernel ahead writes
    begin = split * share
    seen = begin + s < end
    fresh = begin + s == count - 1
    tile = cache + (begin + s)[:, None].to(tl.int64) * (R + P)
    mask = (seen & (begin + s < count - 1))[:, None]
    key = tl.load(tile + R + p, mask=mask & (p < P), other=0.0, cache_modifier=".cg")
    latent = tl.load(tile + r, mask=mask & (r < R), other=0.0, cache_modifier=".cg")
    wait(DEPENDENT)
    last = cache + (count - 1).to(tl.int64) * (R + P)
    new_latent = tl.load(last + r, mask=r < R, other=0.0)
    new_key = tl.load(last + R + p, mask=p < P, other=0.0)
    given = queries + row.to(tl.int64) * Q_STRIDE + heads * (D + P) + D
    ok = (heads < N) & (p < P)
    rotary = tl.load(given + p, mask=ok, other=0.0)
    other = tl.load(given + partner(p, P), mask=ok, other=0.0)
    query = inner + (row * N + heads).to(tl.int64) * R + r
    query = tl.load(query, mask=(heads < N) & (r < R), other=0.0)
    all_asked_for(early, DEPENDENT)
    latent = tl.where(fresh[:, None], new_latent, latent)
    key = tl.where(fresh[:, None], new_key, key)
    rotary, other = rotary.to(tl.float32), other.to(tl.float32)
    rotary = turned(rotary, other, by_cos, by_sin, p, P, kind).to(kind)
    largest = tl.full([BLOCK_N, 1], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_N, 1], tl.float32)
    result = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    scores = _scores(query, rotary, latent, key)
    largest, total, result = weighed(scores, latent, seen, largest, total, result, SCALE)
    for at in tl.range(begin + BLOCK_S, end, BLOCK_S, num_stages=STAGES):
        index = at + s
        seen = index < end
        tile = cache + index[:, None].to(tl.int64) * (R + P)
        latent = tl.load(tile + r, mask=seen[:, None] & (r < R), other=0.0)
        key = tl.load(tile + R + p, mask=seen[:, None] & (p < P), other=0.0)
        scores = _scores(query, rotary, latent, key)
        largest, total, result = weighed(scores, latent, seen, largest, total, result, SCALE)
    mine = (row * N + heads) * SPLITS + split
    tl.store(parts + mine.to(tl.int64) * R + r, result, mask=(heads < N) & (r < R))
    tl.store(sums + 2 * mine, largest, mask=heads < N)
    tl.store(sums + 2 * mine + 1, total, mask=heads < N)


def attend_latents(
    inner: Tensor, queries: Tensor, state: State, position: Tensor, *, latents: Latents
) -> tuple[Tensor, Tensor]:
    """What each split of the slots up to position[B] saw, parts[B,N,*,R], and the sums of its
    weights [B,N,*,2] (the largest exponent, and the sum below it), of inner[B,N,R] and the
    rotated parts of queries[B,N*(D+P)]."""
    cache, cos = state["cache"], state.shared["cos"]
    batch, slots, _ = cache.shape
    heads, plain, turned = latents.heads, latents.plain, latents.turned
    rank = inner.shape[2]
    held = max(power_of_2(rank), LEAST)
    groups = -(-heads // LEAST_HEADS)
    splits = splits_for(batch * groups, slots)
    parts = inner.new_empty(batch, heads, splits, rank, dtype=torch.float32)
    sums = inner.new_empty(batch, heads, splits, 2, dtype=torch.float32)
    with on_device(cache):
        latent_kernel[(batch * groups, splits)](
            inner,
            queries,
            cos,
            state.shared["sin"],
            position,
            cache,
            parts,
            sums,
            early(),
            slots,
            len(cos),
            Q_STRIDE=queries.stride(0),
            N=heads,
            D=plain,
            P=turned,
            R=rank,
            GROUPS=groups,
            BLOCK_N=LEAST_HEADS,
            BLOCK_P=max(power_of_2(turned), LEAST),
            BLOCK_R=held,
            BLOCK_S=min(max(TILE_BYTES // (held * cache.itemsize), LEAST), MOST_SLOTS),
            SPLITS=splits,
            STAGES=STAGES,
            SCALE=(plain + turned) ** -0.5,
            num_warps=4 if held <= 512 else 8,
            **launch_options(),
        )
    return parts, sums
