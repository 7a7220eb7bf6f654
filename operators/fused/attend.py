"""One token's softmax attention over the cache, split over programs: norms and rotation of query
and key, the write to the cache, and the merge of the splits inside.

Legend: B rows, N heads, G key/value heads, D head width, S slots of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.blocks import PROCESSORS
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.heads import partner
from archsearch.operators.fused.heads import rotated
from archsearch.operators.layer import State

# rows of a tile that tensor cores multiply at least
LEAST_HEADS = 16
# fewer slots are not worth a program of their own
LEAST_SLOTS = 64
MOST_SPLITS = 32
# slots that a program looks at together, and how many such tiles are on their way to it
TILE = 64
STAGES = 3
WARPS = 4
# entries of the splits' outputs that the last program holds at once
MERGE_ENTRIES = 8192
LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class HeadNorms:
    """Norms of queries and keys, head by head."""

    query: RMSNorm
    key: RMSNorm


@triton.jit
def _turned(x, norm, cos, sin, d, ok, D: tl.constexpr, EPS: tl.constexpr, LIKE: tl.constexpr):
    """x[...,D] (pointers to its first entry) normed, where there is a norm, and rotated."""
    pair = partner(d, D)
    value = tl.load(x + d, mask=ok, other=0.0).to(tl.float32)
    other = tl.load(x + pair, mask=ok, other=0.0).to(tl.float32)
    if norm is not None:
        axis: tl.constexpr = len(value.shape) - 1
        scale = 1.0 / tl.sqrt(tl.sum(value * value, axis, keep_dims=True) / D + EPS)
        weight = tl.load(norm + d, mask=d < D, other=0.0).to(tl.float32)
        value = rounded(rounded(value * scale, LIKE) * weight, LIKE)
        weight = tl.load(norm + pair, mask=d < D, other=0.0).to(tl.float32)
        other = rounded(rounded(other * scale, LIKE) * weight, LIKE)
    return rotated(value, other, cos, sin, d, D, LIKE)


@triton.jit
def weighed(scores, value, seen, largest, total, result, SCALE: tl.constexpr):
    """(largest exponent, sum of weights, weighted sum of values) with one tile more: values [S,D]
    by the scores [N,S] of their keys, of which those `seen`[S] count."""
    scores = tl.where(seen[None, :], scores * (SCALE * LOG2_E), -float("inf"))
    higher = tl.maximum(largest, tl.max(scores, 1, keep_dims=True))
    # a tile without slots, or with none but the new token's, leaves all at minus infinity
    base = tl.where(higher == -float("inf"), 0.0, higher)
    weights = tl.exp2(scores - base)
    before = tl.exp2(largest - base)
    total = total * before + tl.sum(weights, 1, keep_dims=True)
    result = result * before
    result = tl.dot(weights.to(value.dtype), value, result, input_precision="ieee")
    return higher, total, result


@triton.jit
def _merge(
    parts,
    sums,
    out,
    head,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Weigh the splits' outputs parts[*,SPLITS,D] by the sums [*,SPLITS,2] of their weights (the
    largest exponent, and the sum below it), for the N heads from `head` on."""
    # loads go past the L1, which does not know what other programs wrote
    lanes = tl.arange(0, BLOCK_N)
    at = (head + tl.minimum(lanes, N - 1))[None, :] * SPLITS
    everyone = sums + 2 * (at + tl.arange(0, SPLITS)[:, None])
    exponents = tl.load(everyone, cache_modifier=".cg")
    amounts = tl.load(everyone + 1, cache_modifier=".cg")
    # the first split holds the new token: this is finite
    largest = tl.max(exponents, 0)
    total = tl.sum(amounts * tl.exp2(exponents - largest[None, :]), 0)
    d = tl.arange(0, BLOCK_D)
    result = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for begin in tl.static_range(0, SPLITS, AT_ONCE):
        some = at + (begin + tl.arange(0, AT_ONCE))[:, None]
        weights = tl.exp2(tl.load(sums + 2 * some, cache_modifier=".cg") - largest[None, :])
        part = parts + some[:, :, None] * D + d[None, None, :]
        ok = (d < D)[None, None, :]
        part = tl.load(part, mask=ok, other=0.0, cache_modifier=".cg")
        result += tl.sum(part * weights[:, :, None], 0)
    out += (head + lanes)[:, None] * D + d[None, :]
    ok = (lanes < N)[:, None] & (d < D)[None, :]
    tl.store(out, (result / total[:, None]).to(out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["early", "slots", "length"])
def attend_kernel(
    inputs,
    q_norm,
    k_norm,
    cos,
    sin,
    position,
    active,
    keys,
    values,
    parts,
    sums,
    arrived,
    out,
    early,
    slots,
    length,
    STRIDE: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
    MERGED: tl.constexpr,
    AT_ONCE: tl.constexpr,
    STAGES: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns a share of the used slots for all query heads of one key/value head."""
    pid, split = tl.program_id(0), tl.program_id(1)
    row, group = pid // G, pid % G
    kind = out.dtype.element_ty
    d = tl.arange(0, BLOCK_D)[None, :]
    lanes = tl.arange(0, BLOCK_N)[:, None]
    wait_if_alone(early, DEPENDENT)
    at = tl.load(position + row, cache_modifier=".cg")
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    at = at.to(tl.int32)
    slot = at % slots
    count = tl.minimum(at + 1, slots)
    share = tl.cdiv(tl.cdiv(count, BLOCK_S), SPLITS) * BLOCK_S
    end = tl.minimum((split + 1) * share, count)
    s = tl.arange(0, BLOCK_S)
    cache = (row.to(tl.int64) * slots * G + group) * D
    table = tl.minimum(at, length - 1) * (D // 2)
    # the first tile, which earlier steps wrote, is on its way before the query is there
    begin = split * share
    seen = (begin + s < end) & (begin + s != slot)
    tile = cache + (begin + s)[:, None].to(tl.int64) * (G * D) + d
    mask = seen[:, None] & (d < D)
    key = tl.load(keys + tile, mask=mask, other=0.0, cache_modifier=".cg")
    value = tl.load(values + tile, mask=mask, other=0.0, cache_modifier=".cg")
    wait(DEPENDENT)
    here = inputs + row.to(tl.int64) * STRIDE
    heads = group * (N // G) + lanes
    head_ok = (lanes < N // G) & (d < D)
    query = _turned(here + heads * D, q_norm, cos + table, sin + table, d, head_ok, D, EPS, kind)
    new_key = here + (N + group) * D
    new_key = _turned(new_key, k_norm, cos + table, sin + table, d, d < D, D, EPS, kind)
    new_value = tl.load(here + (N + G + group) * D + d, mask=d < D, other=0.0).to(tl.float32)
    # this token is the first split's, which writes it to the cache: nobody reads that slot
    first = split == 0
    writes = (d < D) & takes_part & first
    tl.store(keys + cache + slot.to(tl.int64) * (G * D) + d, new_key.to(kind), mask=writes)
    tl.store(values + cache + slot.to(tl.int64) * (G * D) + d, new_value.to(kind), mask=writes)
    score = tl.sum(query * new_key, 1, keep_dims=True) * (SCALE * LOG2_E)
    largest = tl.where(first, score, -float("inf"))
    total = tl.where(first, 1.0, 0.0) + tl.zeros([BLOCK_N, 1], tl.float32)
    result = tl.where(first, new_value, 0.0) + tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    query = query.to(kind)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    largest, total, result = weighed(scores, value, seen, largest, total, result, SCALE)
    for at in tl.range(begin + BLOCK_S, end, BLOCK_S, num_stages=STAGES):
        index = at + s
        seen = (index < end) & (index != slot)
        tile = cache + index[:, None].to(tl.int64) * (G * D) + d
        mask = seen[:, None] & (d < D)
        key = tl.load(keys + tile, mask=mask, other=0.0)
        value = tl.load(values + tile, mask=mask, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        largest, total, result = weighed(scores, value, seen, largest, total, result, SCALE)
    out += row.to(tl.int64) * (N * D)
    if SPLITS == 1:
        tl.store(out + heads * D + d, (result / total).to(kind), mask=head_ok)
    else:
        parts += row.to(tl.int64) * (N * SPLITS * D)
        sums += row.to(tl.int64) * (N * SPLITS * 2)
        mine = heads * SPLITS + split
        lane_ok = lanes < N // G
        tl.store(parts + mine.to(tl.int64) * D + d, result, mask=head_ok)
        tl.store(sums + 2 * mine, largest, mask=lane_ok)
        tl.store(sums + 2 * mine + 1, total, mask=lane_ok)
        # all threads have written when one of them tells
        tl.debug_barrier()
        others = tl.atomic_add(arrived + pid, 1, sem="acq_rel", scope="gpu")
        # it counts on from step to step: nothing has to be reset
        if (others & (SPLITS - 1)) == SPLITS - 1:
            tl.debug_barrier()
            head = group * (N // G)
            _merge(parts, sums, out, head, N // G, D, MERGED, BLOCK_D, SPLITS, AT_ONCE)


def attend_step(
    inputs: Tensor,
    state: State,
    position: Tensor,
    active: Tensor,
    *,
    num_heads: int,
    norms: HeadNorms | None,
) -> Tensor:
    """Output [B,N*D] of one token whose queries, keys and values lie side by side in inputs
    [B,(N+2G)*D]; key and value enter the state's cache in the `active`[B] rows, at position[B]
    (modulo its slots)."""
    keys, cos = state["keys"], state.shared["cos"]
    batch, slots, kv_heads, width = keys.shape
    out = inputs.new_empty(batch, num_heads * width)
    splits = splits_for(batch * kv_heads, slots)
    parts = sums = arrived = None
    if splits > 1:
        parts = inputs.new_empty(batch, num_heads, splits, width, dtype=torch.float32)
        sums = inputs.new_empty(batch, num_heads, splits, 2, dtype=torch.float32)
        arrived = state.shared.get("arrived")
        if arrived is None:
            arrived = torch.zeros(batch * kv_heads, dtype=torch.int32, device=keys.device)
            state.shared["arrived"] = arrived
    shared, width_held = power_of_2(num_heads // kv_heads), max(power_of_2(width), LEAST_HEADS)
    tile = TILE // 2 if keys.dtype == torch.float32 else TILE
    with on_device(keys):
        attend_kernel[(batch * kv_heads, splits)](
            inputs,
            None if norms is None else norms.query.weight,
            None if norms is None else norms.key.weight,
            cos,
            state.shared["sin"],
            position,
            active,
            keys,
            state["values"],
            parts,
            sums,
            arrived,
            out,
            early(),
            slots,
            len(cos),
            STRIDE=inputs.stride(0),
            N=num_heads,
            G=kv_heads,
            D=width,
            BLOCK_N=max(shared, LEAST_HEADS),
            BLOCK_D=width_held,
            BLOCK_S=tile,
            SPLITS=splits,
            MERGED=shared,
            AT_ONCE=min(splits, max(MERGE_ENTRIES // (shared * width_held), 1)),
            STAGES=STAGES,
            EPS=0.0 if norms is None else norms.query.eps,
            SCALE=width**-0.5,
            num_warps=WARPS,
            **launch_options(),
        )
    return out


def splits_for(programs: int, slots: int) -> int:
    """Into how many shares the slots are split, a power of two: by the room that the cache has,
    since a captured step cannot follow the position."""
    splits = 1
    while splits < MOST_SPLITS and (
        programs * splits < PROCESSORS and 2 * splits * LEAST_SLOTS <= slots
    ):
        splits *= 2
    return splits
