"""Adapter to flash-linear-attention's gated delta rule in chunks; DeltaNet's decode step is the
gated one too.

Legend: B rows, T tokens, N key heads, G value heads, K key width, V value width.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.common.fla import prepared
from archsearch.operators.common.fla import refuses_chunks
from archsearch.operators.common.fla import refuses_gated_backward
from archsearch.operators.deltanet.kernel import refuses_widths
from archsearch.operators.gated_deltanet.config import GatedDeltaNetConfig


def chunk(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, beta: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Outputs o[B,T,G,V] and, with a state[B,G,K,V], the one after the last token in fp32, of
    q, k[B,T,N,K], v[B,T,G,V], beta and log_decay[B,T,G]."""
    o, final = prepared("fla.ops.gated_delta_rule").chunk_gated_delta_rule(
        q,
        k,
        v,
        log_decay,
        beta,
        initial_state=None if state is None else state.float(),
        output_final_state=state is not None,
        use_qk_l2norm_in_kernel=True,
    )
    return o, final


def refuses(request: Request, config: GatedDeltaNetConfig) -> str:
    """Why flash-linear-attention's kernels cannot serve the request; "" if they can."""
    return (
        refuses_chunks(request)
        or refuses_gated_backward(request)
        or refuses_widths(request, config)
    )
