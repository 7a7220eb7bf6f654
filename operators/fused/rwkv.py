"""RWKV-7's recurrence for one token, state in place: decay, rate and gate from their low ranks,
the removed direction and the written key, and the group norm, bonus and gate where a program holds
a whole head.

Legend: B rows, N heads, D head width, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import all_asked_for
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import tanh
from archsearch.operators.fused.device import wait
from archsearch.operators.fused.device import wait_if_alone
from archsearch.operators.fused.heads import STAGES
from archsearch.operators.fused.heads import Cut
from archsearch.operators.fused.heads import at_once
from archsearch.operators.fused.heads import few
from archsearch.operators.fused.heads import few_columns
from archsearch.operators.fused.heads import from_few
from archsearch.operators.fused.heads import from_many
from archsearch.operators.fused.heads import holds

# what a unit vector is divided by at least, as in torch
UNIT_EPS = 1e-12


@dataclass(frozen=True)
class Vectors:
    """What a layer knows by channel, [H] each."""

    decay_bias: Tensor
    rate_bias: Tensor
    removed: Tensor
    replaced: Tensor
    bonus: Tensor


@dataclass(frozen=True)
class Outputs:
    """What a step leaves: the heads' outputs o, what is added to their norm, and the gate, [B,H]
    each; with a whole head per program, o alone counts, and all is in it."""

    o: Tensor
    added: Tensor
    gate: Tensor


@triton.jit
def _finish(out, added, gate, norm, bias, channels, ok, D: tl.constexpr, EPS: tl.constexpr):
    """Replace a head's outputs [D], which this program has written as it has the other two, by
    their norm, plus `added`, times the gate."""
    kind = out.dtype.element_ty
    # what other threads of the program wrote
    tl.debug_barrier()
    o = tl.load(out, mask=ok, other=0.0).to(tl.float32)
    weight = tl.load(norm + channels, mask=ok, other=0.0).to(tl.float32)
    shift = tl.load(bias + channels, mask=ok, other=0.0).to(tl.float32)
    more = tl.load(added, mask=ok, other=0.0)
    opened = tl.load(gate, mask=ok, other=0.0).to(tl.float32)
    o = tl.where(ok, o - tl.sum(o, 0) / D, 0.0)
    o *= 1.0 / tl.sqrt(tl.sum(o * o, 0) / D + EPS)
    o = rounded(rounded(o * weight + shift, kind) + more, kind) * opened
    tl.debug_barrier()
    tl.store(out, o.to(kind), mask=ok)


@triton.jit(do_not_specialize=["early"])
def rwkv_kernel(
    inputs,
    decay_up,
    rate_up,
    gate_up,
    decay_bias,
    rate_bias,
    removed,
    replaced,
    bonus,
    norm,
    norm_bias,
    state,
    active,
    added,
    gate,
    out,
    early,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    HELD: tl.constexpr,
    WHOLE: tl.constexpr,
    EPS: tl.constexpr,
    UNIT_EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns TILES times BLOCK_V columns of one head's state [D,D] in one row."""
    pid = tl.program_id(0)
    row, head = pid // HEADS, pid % HEADS
    k = tl.arange(0, BLOCK_D)
    v = tl.program_id(1) * (TILES * BLOCK_V) + tl.arange(0, BLOCK_V)
    k_ok = k < D
    channels, lanes = head * D + k, head * D + v
    tile = state + pid.to(tl.int64) * (D * D) + k[:, None] * D + v[None, :]
    place = pid.to(tl.int64) * D
    kind = out.dtype.element_ty
    wait_if_alone(early, DEPENDENT)
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    removal = tl.load(removed + channels, mask=k_ok, other=0.0).to(tl.float32)
    replacement = tl.load(replaced + channels, mask=k_ok, other=0.0).to(tl.float32)
    extra = tl.load(bonus + channels, mask=k_ok, other=0.0).to(tl.float32)
    w_bias = tl.load(decay_bias + channels, mask=k_ok, other=0.0).to(tl.float32)
    a_bias = tl.load(rate_bias + channels, mask=k_ok, other=0.0).to(tl.float32)
    if HELD:
        w_up = few_columns(decay_up, channels, k_ok, RANKS[0], BLOCKS[0])
        a_up = few_columns(rate_up, channels, k_ok, RANKS[1], BLOCKS[1])
        g_up = few_columns(gate_up, lanes, v < D, RANKS[2], BLOCKS[2])
    if TILES == 1:
        # last, since it may change threads as soon as it is there
        mask = k_ok[:, None] & (v < D)[None, :]
        first = tl.load(tile, mask=mask, other=0.0, cache_modifier=".cg")
    wait(DEPENDENT)
    here = inputs + row.to(tl.int64) * STRIDE
    query = tl.load(here + COLUMNS[0] + channels, mask=k_ok, other=0.0)
    key = tl.load(here + COLUMNS[1] + channels, mask=k_ok, other=0.0)
    w_at, a_at, g_at = here + COLUMNS[3], here + COLUMNS[4], here + COLUMNS[5]
    if HELD:
        w, a = few(w_at, RANKS[0], BLOCKS[0]), few(a_at, RANKS[1], BLOCKS[1])
        g = few(g_at, RANKS[2], BLOCKS[2])
    if TILES == 1:
        value = tl.load(here + COLUMNS[2] + lanes, mask=v < D, other=0.0).to(tl.float32)
    all_asked_for(early, DEPENDENT)
    # tanh would pass that branch; what one side of a branch loads again it has to wait for
    if HELD and DEPENDENT:  # noqa: SIM102
        if early == 0:
            w = few(w_at, RANKS[0], BLOCKS[0])
    query, key = query.to(tl.float32), key.to(tl.float32)
    if HELD:
        w = from_few(rounded(tanh(w), kind), w_up, w_bias)
        a = from_few(a, a_up, a_bias)
    else:
        w = from_many(w_at, decay_up, channels, k_ok, RANKS[0], BLOCKS[0], "tanh", kind) + w_bias
        a = from_many(a_at, rate_up, channels, k_ok, RANKS[1], BLOCKS[1], "", kind) + a_bias
    decay = tl.exp(-SCALE * tl.sigmoid(rounded(w, kind)))
    rate = rounded(tl.sigmoid(rounded(a, kind)), kind)
    unit = rounded(key * removal, kind)
    length = tl.maximum(rounded(tl.sqrt(tl.sum(unit * unit, 0)), kind), UNIT_EPS)
    unit = rounded(unit / length, kind)
    replacement = rounded(rounded(rate - 1.0, kind) * replacement, kind)
    key = rounded(key * rounded(1.0 + replacement, kind), kind)
    share = rounded(tl.sum(rounded(rounded(query * key, kind) * extra, kind), 0), kind)
    for i in tl.range(0, TILES, num_stages=STAGES):
        at = i * BLOCK_V
        v_ok = at + v < D
        mask = k_ok[:, None] & v_ok[None, :]
        s = first if TILES == 1 else tl.load(tile + at, mask=mask, other=0.0)
        s = s.to(tl.float32)
        if TILES > 1:
            value = tl.load(here + COLUMNS[2] + lanes + at, mask=v_ok, other=0.0).to(tl.float32)
        missing = tl.sum(s * unit[:, None], 0)
        s = s * decay[:, None] - (unit * rate)[:, None] * missing[None, :]
        s += key[:, None] * value[None, :]
        o = tl.sum(s * query[:, None], 0)
        tl.store(tile + at, s.to(state.dtype.element_ty), mask=mask & takes_part)
        tl.store(out + place + at + v, o.to(kind), mask=v_ok)
        tl.store(added + place + at + v, share * value, mask=v_ok)
        if HELD:
            opened = from_few(rounded(tl.sigmoid(g), kind), g_up, 0.0)
        else:
            opened = from_many(
                g_at, gate_up, lanes + at, v_ok, RANKS[2], BLOCKS[2], "sigmoid", kind
            )
        tl.store(gate + place + at + v, opened.to(kind), mask=v_ok)
    if WHOLE:
        place += k
        _finish(out + place, added + place, gate + place, norm, norm_bias, channels, k_ok, D, EPS)


def rwkv_step(
    inputs: Tensor,
    columns: tuple[int, ...],
    state: Tensor,
    active: Tensor,
    *,
    ups: tuple[Tensor, Tensor, Tensor],
    vectors: Vectors,
    norm: tuple[Tensor, Tensor, float],
    cut: Cut,
    scale: float,
) -> Outputs:
    """Output of one token, state[B,N,D,D] moving on in the `active`[B] rows. Of inputs[B,*], r, k,
    v and what goes through ups[H,R], those of log-decay / -scale, rate and gate, begin at
    `columns`; norm = (weights[H], biases[H], eps)."""
    batch, heads, width, _ = state.shape
    made = Outputs(
        inputs.new_empty(batch, heads * width),
        inputs.new_empty(batch, heads * width, dtype=torch.float32),
        inputs.new_empty(batch, heads * width),
    )
    ranks = tuple(up.shape[1] for up in ups)
    blocks = tuple(power_of_2(rank) for rank in ranks)
    rows = power_of_2(width)
    held = not cut.whole and holds(rows * blocks[0], rows * blocks[1], cut.columns * blocks[2])
    if not held:
        blocks = tuple(at_once(rows, rank) for rank in ranks)
    weight, bias, eps = norm
    with on_device(state):
        rwkv_kernel[(batch * heads, -(-width // (cut.tiles * cut.columns)))](
            inputs,
            *ups,
            vectors.decay_bias,
            vectors.rate_bias,
            vectors.removed,
            vectors.replaced,
            vectors.bonus,
            weight,
            bias,
            state,
            active,
            made.added,
            made.gate,
            made.o,
            early(),
            STRIDE=inputs.stride(0),
            COLUMNS=columns,
            RANKS=ranks,
            BLOCKS=blocks,
            HEADS=heads,
            D=width,
            BLOCK_D=rows,
            BLOCK_V=cut.columns,
            TILES=cut.tiles,
            STAGES=STAGES,
            HELD=held,
            WHOLE=cut.whole,
            EPS=eps,
            UNIT_EPS=UNIT_EPS,
            SCALE=scale,
            num_warps=cut.warps if cut.whole else 8,
            **launch_options(),
        )
    return made
