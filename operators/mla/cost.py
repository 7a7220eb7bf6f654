"""Parameters, FLOPs and bytes of multi-head latent attention."""

from __future__ import annotations

from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost
from archsearch.operators.mla.config import MLAConfig


def cost(config: MLAConfig, shape: Shape) -> Cost:
    """Cost of one layer; the cache holds latents and rotated keys of `shape.context` tokens."""
    hidden, heads, rank = config.hidden_size, config.num_heads, config.kv_lora_rank
    queries = heads * config.qk_head_dim
    if config.q_lora_rank is None:
        query, norms = hidden * queries, rank
    else:
        query, norms = config.q_lora_rank * (hidden + queries), rank + config.q_lora_rank
    expansion = heads * (config.head_dim + config.v_head_dim) * rank
    matmul = query + hidden * config.cache_width + expansion + heads * config.v_head_dim * hidden
    token_bytes = config.cache_width * shape.element_bytes
    if shape.phase == "decode":
        # absorbed: the expansion acts on the query and on the result, once per token
        mixing = 2.0 * heads * (config.cache_width + rank) * shape.context
    else:
        mixing = heads * (config.qk_head_dim + config.v_head_dim) * (shape.context + 1.0)
    return layer_cost(
        config,
        shape,
        parameters=matmul + norms,
        matmul_parameters=matmul,
        mixing_flops=mixing,
        state_bytes=token_bytes * shape.context,
        state_read_bytes=token_bytes * (shape.context + 1),
    )
