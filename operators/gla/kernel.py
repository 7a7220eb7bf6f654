"""Adapters to flash-linear-attention: the chunked form both ways, and one token.

Legend: B rows, T tokens, N heads, K key width, V value width.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.backends import Request
from archsearch.operators.common.fla import linear_step_
from archsearch.operators.common.fla import prepared
from archsearch.operators.common.fla import refuses_chunks
from archsearch.operators.common.fla import refuses_narrow
from archsearch.operators.gla.config import GLAConfig

OPS = "fla.ops.gla"


def chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The same as `chunked.chunk_gla`, in the dtype of q, k and v; the final state, in fp32, is
    given only where there is an initial one."""
    state = None if initial_state is None else initial_state.float()
    o, final = prepared(OPS).chunk_gla(
        q, k, v, log_decay, initial_state=state, output_final_state=state is not None
    )
    return o, final


def step_(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """Output of one token as `reference.gla_step`, fp32 inside; the state moves on in place, and
    stays where k and log_decay are 0."""
    return linear_step_(state, q, k, v, by_key=log_decay)


def refuses(request: Request, config: GLAConfig) -> str:
    """Why the kernels cannot serve the request; "" if they can."""
    return refuses_chunks(request) or refuses_narrow(request, config.k_head_dim, config.head_dim)
