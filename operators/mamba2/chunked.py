"""Mamba-2 in chunks: linear attention with queries C, keys B, values dt x and log-decays dt A.

Legend: B rows, T tokens, N heads, G groups, P head width, K state width.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.scalar_decay import chunk_scalar_decay


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The same as `reference.ssd`, `chunk` tokens at a time."""
    y, final = chunk_scalar_decay(
        c,
        b,
        x.float() * dt[..., None],
        dt * a,
        initial_state=None if state is None else state.transpose(-1, -2),
        chunk=chunk,
    )
    return y.to(x.dtype), final.transpose(-1, -2)
