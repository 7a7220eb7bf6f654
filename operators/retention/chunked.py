"""Retention in chunks: the shared form for one decay per head.

Legend: B rows, T tokens, N heads, K key width, V value width.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.scalar_decay import chunk_scalar_decay


def chunk_retention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over q, k[B,T,N,K], v[B,T,N,V], log_decay[B or 1,T,N]; returns
    o[B,T,N,V] in v's dtype and the final state [B,N,K,V] in fp32."""
    return chunk_scalar_decay(
        q * q.shape[-1] ** -0.5, k, v, log_decay, initial_state=initial_state
    )
