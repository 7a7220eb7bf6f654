"""Adapters to flash-linear-attention's Triton kernels: the gated delta product in chunks both
ways, and the writes of one token in place.

Both make unit vectors of queries and keys, and scale the queries, themselves.

Legend: B rows, T tokens, R writes per token, N key heads, G value heads, K key width,
V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.operators.backends import Request
from archsearch.operators.common.fla import launch_delta_in_place
from archsearch.operators.common.fla import prepared
from archsearch.operators.common.fla import refuses_dtype
from archsearch.operators.common.fla import refuses_gated_backward
from archsearch.operators.deltanet.kernel import refuses_widths
from archsearch.operators.deltanet.module import SHUT
from archsearch.operators.gated_deltaproduct.config import GatedDeltaProductConfig


def chunk(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, beta: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Outputs o[B,T,G,V] and, with a state[B,G,K,V], the one after the last token in fp32, of
    q[B,T,N,K], k[B,T,R,N,K], v[B,T,R,G,V] in one 16-bit type, beta[B,T,R,G] and
    log_decay[B,T,G]."""
    groups = v.shape[3] // q.shape[2]
    if groups > 1:
        q, k = q.repeat_interleave(groups, dim=-2), k.repeat_interleave(groups, dim=-2)
    o, final = prepared("fla.ops.gated_delta_product").chunk_gated_delta_product(
        q,
        k.flatten(1, 2),
        v.flatten(1, 2),
        log_decay,
        beta.flatten(1, 2),
        num_householder=k.shape[2],
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
    a: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    *,
    allow_neg_eigval: bool,
) -> Tensor:
    """Output o[B,G,V] of one token q[B,N,K], k[B,R,N,K], v[B,R,G,V] with write logits b[B,R,G]
    and decay logits a[B,G]; state[B,G,K,V] moves on in place: it decays by
    exp(-exp(A_log) softplus(a + dt_bias)), then come the writes."""
    writes = k.shape[1]
    q = q[:, None].expand(-1, writes, -1, -1)
    # one decay per token: nothing is forgotten before its further writes
    a = F.pad(a[:, None], (0, 0, 0, writes - 1), value=SHUT)
    inputs = {"q": q, "k": k, "beta": b, "g": a, "A_log": A_log, "dt_bias": dt_bias}
    o = launch_delta_in_place(state, inputs, v, writes=writes, allow_neg_eigval=allow_neg_eigval)
    return o[:, -1]


def refuses(request: Request, config: GatedDeltaProductConfig) -> str:
    """Why flash-linear-attention's kernels cannot serve the request; "" if they can."""
    if request.phase != "decode" and request.dtype == torch.float32:
        return "it computes in 16-bit types only"
    return (
        refuses_dtype(request)
        or refuses_gated_backward(request)
        or refuses_widths(request, config)
    )
