"""Adapters to flash-linear-attention's Triton kernels: the delta rule in chunks both ways, and
one token in place.

Both make unit vectors of queries and keys, and scale the queries, themselves.

Legend: B rows, T tokens, N key heads, G value heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.common.fla import launch_delta_in_place
from archsearch.operators.common.fla import prepared
from archsearch.operators.common.fla import refuses_dtype
from archsearch.operators.deltanet.config import DeltaNetConfig

MAX_KEYS = 256


def chunk(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, beta: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Outputs o[B,T,N,V] and, with a state[B,N,K,V], the one after the last token in fp32, of
    q, k[B,T,N,K], v[B,T,N,V] in one 16-bit type and write strengths beta[B,T,N]."""
    o, final = prepared("fla.ops.delta_rule").chunk_delta_rule(
        q,
        k,
        v,
        beta,
        initial_state=None if state is None else state.float(),
        output_final_state=state is not None,
        use_qk_l2norm_in_kernel=True,
    )
    return o, final


def step_(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Tensor,
    a: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> Tensor:
    """Output o[B,G,V] of one token q, k[B,N,K], v[B,G,V] with write logits b[B,G];
    state[B,G,K,V] moves on in place. With decay logits a[B,G], A_log and dt_bias[G] it first
    decays by exp(-exp(A_log) softplus(a + dt_bias))."""
    inputs = {"q": q, "k": k, "beta": b, "g": a, "A_log": A_log, "dt_bias": dt_bias}
    return launch_delta_in_place(state, inputs, v)


def refuses(request: Request, config: DeltaNetConfig) -> str:
    """Why flash-linear-attention's kernels cannot serve the request; "" if they can."""
    if request.phase != "decode" and request.dtype == torch.float32:
        return "it computes in 16-bit types only"
    return refuses_dtype(request) or refuses_widths(request, config)


def refuses_widths(request: Request, config: DeltaNetConfig) -> str:
    """Why the chunked kernels cannot serve heads of these widths; "" if they can."""
    if request.phase == "decode":
        return ""
    if config.head_dim > MAX_KEYS:
        return f"its keys are at most {MAX_KEYS} wide; here they are {config.head_dim}"
    if config.head_dim % 2 or config.v_head_dim % 2:
        return f"its heads are of even width; here {config.head_dim} and {config.v_head_dim}"
    return ""
