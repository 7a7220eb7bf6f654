"""Adapters to flash-linear-attention's Kimi Delta Attention: in chunks both ways, and one token
in place.

Both take raw heads and logits: unit vectors, gates and the scale of the queries are made within.

Legend: B rows, T tokens, N heads, K key width, V value width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.common.fla import prepared
from archsearch.operators.common.fla import refuses_chunks
from archsearch.operators.deltanet.config import DeltaNetConfig

MIN_WIDTH, MAX_KEYS = 16, 256


def chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    b: Tensor,
    f: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Outputs o[B,T,N,V] and, with a state[B,N,K,V], the one after the last token in fp32, of
    q, k and decay logits f[B,T,N,K], v[B,T,N,V], write logits b[B,T,N], A_log[N] and
    dt_bias[N*K]."""
    o, final = prepared("fla.ops.kda").chunk_kda(
        q,
        k,
        v,
        f,
        b,
        A_log=A_log,
        dt_bias=dt_bias,
        initial_state=None if state is None else state.float(),
        output_final_state=state is not None,
        use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
    )
    return o, final


def step_(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Tensor,
    f: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
) -> Tensor:
    """Output o[B,N,V] of one token q, k, f[B,N,K], v[B,N,V], b[B,N]; state[B,N,K,V] moves on in
    place, since a program reads its tile of it whole before it writes it."""
    assert state.is_contiguous(), "the state must be contiguous to be updated in place"
    q, k, v, f, b = (part[:, None] for part in (q, k, v, f, b))
    o: Tensor = _step()(
        q,
        k,
        v,
        f,
        b,
        A_log=A_log,
        dt_bias=dt_bias,
        initial_state=state,
        inplace_final_state=True,
        use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        out=torch.empty_like(v),
    )[0]
    return o[:, 0]


def refuses(request: Request, config: DeltaNetConfig) -> str:
    """Why these kernels cannot serve the request; "" if they can."""
    keys, values = config.head_dim, config.v_head_dim
    if request.phase != "decode":
        if keys > MAX_KEYS:
            return f"its keys are at most {MAX_KEYS} wide; here they are {keys}"
        if min(keys, values) < MIN_WIDTH or keys % 2 or values % 2:
            return f"its heads are of even width from {MIN_WIDTH} on; here {keys} and {values}"
    return refuses_chunks(request)


@cache
def _step() -> Any:
    """The launch of the step, with every input contiguous and on its device."""
    launch = prepared("fla.ops.kda.fused_recurrent").fused_recurrent_kda_fwd
    guard: Any = prepared("fla.utils").input_guard
    return guard(launch)
