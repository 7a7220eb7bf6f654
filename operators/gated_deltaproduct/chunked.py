"""Gated DeltaProduct, fast: in chunks over a prompt, and one token at a time.

The writes of all tokens in a row follow the delta rule, so that its triangular system is solved
for R writes per token; only a token's first write comes after a decay, and only its last one
before a query, of which there are R times fewer.

Legend: B rows, T tokens, R writes per token, N heads, K key width, V value width, M chunks,
C tokens of a chunk.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.delta_rule import CHUNK
from archsearch.operators.common.delta_rule import carry_chunks
from archsearch.operators.common.delta_rule import delta_rule_step
from archsearch.operators.common.delta_rule import to_chunks


def chunk_delta_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    beta: Tensor,
    log_decay: Tensor,
) -> tuple[Tensor, Tensor]:
    """Outputs o[B,T,N,V] and the final state for q[B,T,N,K], k[B,T,R,N,K], v[B,T,R,N,V],
    beta[B,T,R,N] and log_decay[B,T,N], from state[B,N,K,V]; everything in fp32."""
    length, writes = q.shape[1], k.shape[2]
    size = min(max(1, CHUNK // writes), length)
    q, total = to_chunks(q, size), to_chunks(log_decay[..., None], size).cumsum(2)
    k, v, beta = (to_chunks(x.flatten(1, 2), size * writes) for x in (k, v, beta[..., None]))
    # only past over present: the other half could overflow
    pairwise = (total - total.mT).tril().exp().tril().repeat_interleave(writes, dim=-1)
    scores = (q @ k.mT) * pairwise
    overlap = (k @ k.mT) * beta * pairwise.repeat_interleave(writes, dim=-2)
    written = total.repeat_interleave(writes, dim=2)
    last = total[:, :, -1:]
    o, final = carry_chunks(
        q * total.exp(),
        k * written.exp(),
        k * (last - written).exp(),
        v,
        beta=beta,
        overlap=overlap,
        scores=scores,
        ends=last.exp(),
        state=state,
    )
    return o[:, :length], final


def delta_product_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    beta: Tensor,
    log_decay: Tensor,
) -> Tensor:
    """Output o[B,N,V] of one token q[B,N,K], k[B,R,N,K], v[B,R,N,V], beta[B,R,N] and
    log_decay[B,N]; state[B,N,K,V] moves on in place, and stays where beta and log_decay are 0."""
    current = state.float()
    o = delta_rule_step(q, k[:, 0], v[:, 0], current, beta[:, 0], log_decay)
    for r in range(1, k.shape[1]):
        o = delta_rule_step(q, k[:, r], v[:, r], current, beta[:, r])
    if current is not state:
        state.copy_(current)
    return o
