"""The delta rule for one token, of one or several writes, state in place: unit keys and queries,
write strengths and decay from their logits, and the norm of the heads where a program holds a
whole one. Decays by key and output gates may come from a low rank.

Legend: B rows, N key heads, G value heads, K key width, V value width, R writes, L low rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from archsearch.operators.common.delta_rule import L2_EPS
from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.blocks import power_of_2
from archsearch.operators.fused.device import all_asked_for
from archsearch.operators.fused.device import appended
from archsearch.operators.fused.device import early
from archsearch.operators.fused.device import launch_options
from archsearch.operators.fused.device import on_device
from archsearch.operators.fused.device import rounded
from archsearch.operators.fused.device import softplus
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
from archsearch.operators.fused.heads import norm_head
from archsearch.operators.fused.heads import warps_for


@dataclass(frozen=True)
class LowRank:
    """Decays by key of decay[G*K,L] f and output gates sigmoid(gate[G*V,L] g + bias[G*V]), which
    are left in opened[B,G*V]."""

    decay: Tensor
    gate: Tensor
    bias: Tensor
    opened: Tensor


@triton.jit
def _values(first, v, ok, STEP: tl.constexpr, WRITES: tl.constexpr):
    """Entries v of the values of all writes, which lie STEP apart."""
    values = ()
    for r in tl.static_range(WRITES):
        value = first + r * STEP + v
        values = appended(values, tl.load(value, mask=ok, other=0.0).to(tl.float32))
    return values


@triton.jit(do_not_specialize=["early"])
def delta_kernel(
    inputs,
    a_log,
    dt_bias,
    decay_up,
    gate_up,
    gate_bias,
    norm,
    state,
    active,
    opened,
    out,
    early,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WRITES: tl.constexpr,
    STRENGTH: tl.constexpr,
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    DECAYS: tl.constexpr,
    GATED: tl.constexpr,
    HELD: tl.constexpr,
    WHOLE: tl.constexpr,
    EPS: tl.constexpr,
    UNIT_EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A program owns TILES times BLOCK_V columns of one head's state [K,V] in one row."""
    pid = tl.program_id(0)
    row, head = pid // HEADS, pid % HEADS
    k = tl.arange(0, BLOCK_K)
    v = tl.program_id(1) * (TILES * BLOCK_V) + tl.arange(0, BLOCK_V)
    k_ok = k < K
    tile = state + pid.to(tl.int64) * (K * V) + k[:, None] * V + v[None, :]
    out += pid.to(tl.int64) * V
    kind = out.dtype.element_ty
    wait_if_alone(early, DEPENDENT)
    takes_part = tl.load(active + row, cache_modifier=".cg").to(tl.int1)
    if DECAYS:
        log_rate = tl.load(a_log + head)
        if RANK == 0:
            rest = tl.load(dt_bias + head)
    if RANK > 0:
        channels = head * K + k
        rest = tl.load(dt_bias + channels, mask=k_ok, other=0.0)
        opened += pid.to(tl.int64) * V
        if HELD:
            up = few_columns(decay_up, channels, k_ok, RANK, BLOCK_R)
            opener = few_columns(gate_up, head * V + v, v < V, RANK, BLOCK_R)
            shut = tl.load(gate_bias + head * V + v, mask=v < V, other=0.0).to(tl.float32)
    if TILES == 1:
        # last, since it may change threads as soon as it is there
        mask = k_ok[:, None] & (v < V)[None, :]
        first = tl.load(tile, mask=mask, other=0.0, cache_modifier=".cg")
    wait(DEPENDENT)
    # all at once: what is loaded behind a sum over threads would come a round trip later
    here = inputs + row.to(tl.int64) * STRIDE
    shared = k + (head // GROUP) * K
    query = tl.load(here + COLUMNS[0] + shared, mask=k_ok, other=0.0)
    given, betas, keys, strengths = (), (), (), ()
    for r in tl.static_range(WRITES):
        key = here + COLUMNS[1] + r * (HEADS // GROUP * K) + shared
        given = appended(given, tl.load(key, mask=k_ok, other=0.0))
        betas = appended(betas, tl.load(here + COLUMNS[3] + r * HEADS + head))
    if DECAYS and RANK == 0:
        step = tl.load(here + COLUMNS[4] + head).to(tl.float32)
    if TILES == 1:
        values = _values(here + COLUMNS[2] + head * V, v, v < V, HEADS * V, WRITES)
    if HELD:
        f = few(here + COLUMNS[4], RANK, BLOCK_R)
        g = few(here + COLUMNS[5], RANK, BLOCK_R)
    all_asked_for(early, DEPENDENT)
    query = query.to(tl.float32)
    query *= SCALE / tl.sqrt(tl.sum(query * query, 0) + UNIT_EPS)
    for r in tl.static_range(WRITES):
        strengths = appended(strengths, tl.sigmoid(betas[r].to(tl.float32)) * STRENGTH)
        key = given[r].to(tl.float32)
        keys = appended(keys, key * (1.0 / tl.sqrt(tl.sum(key * key, 0) + UNIT_EPS)))
    decay = 1.0
    if RANK > 0:
        if HELD:
            step = from_few(f, up, 0.0)
        else:
            step = from_many(here + COLUMNS[4], decay_up, channels, k_ok, RANK, BLOCK_R, "", kind)
        step = softplus(rounded(step, kind) + rest.to(tl.float32))
        decay = tl.exp(-tl.exp(log_rate.to(tl.float32)) * step)[:, None]
    elif DECAYS:
        step = softplus(step + rest.to(tl.float32))
        decay = tl.exp(-tl.exp(log_rate.to(tl.float32)) * step)
    for i in tl.range(0, TILES, num_stages=STAGES):
        at = i * BLOCK_V
        v_ok = at + v < V
        mask = k_ok[:, None] & v_ok[None, :]
        s = first if TILES == 1 else tl.load(tile + at, mask=mask, other=0.0)
        s = s.to(tl.float32) * decay
        if TILES > 1:
            values = _values(here + COLUMNS[2] + head * V + at, v, v_ok, HEADS * V, WRITES)
        for r in tl.static_range(WRITES):
            correction = strengths[r] * (values[r] - tl.sum(s * keys[r][:, None], 0))
            s += keys[r][:, None] * correction[None, :]
        o = tl.sum(s * query[:, None], 0)
        tl.store(tile + at, s.to(state.dtype.element_ty), mask=mask & takes_part)
        tl.store(out + at + v, o.to(kind), mask=v_ok)
        if RANK > 0:
            if HELD:
                gate = from_few(g, opener, shut)
            else:
                mine = head * V + at + v
                gate = from_many(here + COLUMNS[5], gate_up, mine, v_ok, RANK, BLOCK_R, "", kind)
                gate += tl.load(gate_bias + mine, mask=v_ok, other=0.0).to(tl.float32)
            tl.store(opened + at + v, tl.sigmoid(rounded(gate, kind)).to(kind), mask=v_ok)
    if WHOLE:
        if RANK > 0:
            norm_head(out, norm, opened, V, BLOCK_HEAD, EPS, True, True)
        else:
            norm_head(out, norm, here + COLUMNS[5] + head * V, V, BLOCK_HEAD, EPS, GATED)


def delta_step(
    inputs: Tensor,
    columns: tuple[int, int, int, int, int, int],
    state: Tensor,
    active: Tensor,
    *,
    norm: RMSNorm,
    key_heads: int,
    cut: Cut,
    decay: tuple[Tensor, ...],
    gated: bool = False,
    low: LowRank | None = None,
    writes: int = 1,
    strength: float = 1.0,
) -> Tensor:
    """Output [B,G*V] of one token, state[B,G,K,V] moving on in the `active`[B] rows. Of
    inputs[B,*], queries[N,K], keys[R,N,K], values[R,G,V] and the logits of write strengths[R,G],
    decay[G] and output gate[G,V] begin at `columns`; decay = (A_log, dt_bias), [G] each, or
    nothing. With a low rank f[L] and g[L] are in the place of the last two, and dt_bias is [G*K].
    Of R = `writes` none is stronger than `strength`."""
    batch, heads, keys, values = state.shape
    out = inputs.new_empty(batch, heads * values)
    rank = low.gate.shape[1] if low else 0
    rows, ranks = power_of_2(keys), power_of_2(rank)
    held = rank > 0 and not cut.whole and holds(rows * ranks, cut.columns * ranks)
    with on_device(state):
        delta_kernel[(batch * heads, -(-values // (cut.tiles * cut.columns)))](
            inputs,
            *(decay or (None, None)),
            *((low.decay, low.gate, low.bias) if low else (None, None, None)),
            norm.weight,
            state,
            active,
            low.opened if low else None,
            out,
            early(),
            STRIDE=inputs.stride(0),
            COLUMNS=columns,
            HEADS=heads,
            GROUP=heads // key_heads,
            WRITES=writes,
            STRENGTH=strength,
            RANK=rank,
            K=keys,
            V=values,
            BLOCK_K=rows,
            BLOCK_V=cut.columns,
            BLOCK_R=ranks if held else at_once(rows, rank),
            BLOCK_HEAD=power_of_2(values),
            TILES=cut.tiles,
            STAGES=STAGES,
            DECAYS=bool(decay),
            GATED=gated,
            HELD=held,
            WHOLE=cut.whole,
            EPS=norm.eps,
            UNIT_EPS=L2_EPS,
            SCALE=keys**-0.5,
            num_warps=max(cut.warps, warps_for(rows * ranks)) if held else cut.warps,
            **launch_options(),
        )
    return out
