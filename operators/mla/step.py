"""One decode step of a whole latent attention layer in five launches: norm and projections;
queries to the space of latents, and the cache; softmax; values; projection and add. Low-rank
queries take one more, for their second projection.

Legend: B rows, H hidden size.
"""

from __future__ import annotations

from torch import Tensor

from archsearch.operators.common.norm import RMSNorm
from archsearch.operators.fused.expansion import Latents
from archsearch.operators.fused.expansion import absorb
from archsearch.operators.fused.expansion import expand
from archsearch.operators.fused.latent import attend_latents
from archsearch.operators.fused.products import Norm
from archsearch.operators.fused.products import project
from archsearch.operators.fused.products import write_back
from archsearch.operators.layer import State
from archsearch.operators.mla.module import MultiHeadLatentAttention

WIDEST_LATENT = 1024
WIDEST = 256


def step(
    mixer: MultiHeadLatentAttention,
    norm: RMSNorm,
    h: Tensor,
    state: State,
    position: Tensor,
    active: Tensor,
) -> Tensor:
    """`Mixer.step` of h[B,H]."""
    config = mixer.config
    first = mixer.q_proj if config.q_lora_rank is None else mixer.q_a_proj
    weights = (first.weight, mixer.kv_a_proj_with_mqa.weight)
    inputs = project(h, weights, norm=Norm.of(norm))
    queries, compressed = inputs.split([len(weight) for weight in weights], dim=1)
    if config.q_lora_rank is not None:
        queries = project(queries, (mixer.q_b_proj.weight,), norm=Norm.of(mixer.q_a_layernorm))
    latents = Latents(
        norm=mixer.kv_a_layernorm,
        weight=mixer.kv_b_proj.weight,
        heads=config.num_heads,
        plain=config.head_dim,
        turned=config.rope_head_dim,
        values=config.v_head_dim,
    )
    inner = absorb(queries, compressed, state, position, active, latents=latents)
    parts, sums = attend_latents(inner, queries, state, position, latents=latents)
    o = expand(parts, sums, latents=latents)
    return write_back(o, mixer.o_proj.weight, h, active)


def refuses(mixer: MultiHeadLatentAttention) -> str:
    """Why this layer's step has no kernels; "" if it has."""
    config = mixer.config
    if config.kv_lora_rank > WIDEST_LATENT:
        return f"its latents are at most {WIDEST_LATENT} wide; here {config.kv_lora_rank}"
    widest = max(config.head_dim, config.rope_head_dim, config.v_head_dim)
    if widest > WIDEST:
        return f"its heads are at most {WIDEST} wide; here {widest}"
    return ""
