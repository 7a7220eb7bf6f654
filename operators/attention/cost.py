"""Parameters, FLOPs and bytes of full attention."""

from __future__ import annotations

from archsearch.operators.attention.config import AttentionConfig
from archsearch.operators.base import Cost
from archsearch.operators.base import Shape
from archsearch.operators.base import layer_cost


def cost(config: AttentionConfig, shape: Shape) -> Cost:
    """Cost of one layer; the key/value cache holds `shape.context` tokens per row."""
    return attention_cost(config, shape, cached=shape.context)


def attention_cost(config: AttentionConfig, shape: Shape, *, cached: int) -> Cost:
    """Cost of attention whose cache holds, and whose queries see, at most `cached` tokens."""
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    matmul = config.hidden_size * (2 * queries + 2 * keys)
    biases = queries + 2 * keys if config.qkv_bias else 0
    norms = 2 * config.head_dim if config.qk_norm else 0
    token_bytes = 2 * keys * shape.element_bytes
    if shape.phase == "decode":
        seen = float(cached)
    else:
        # mean over the rows of a causal band that is `cached` wide
        seen = cached - cached * (cached - 1) / (2 * shape.context)
    return layer_cost(
        config,
        shape,
        parameters=matmul + biases + norms,
        matmul_parameters=matmul,
        mixing_flops=4 * queries * seen,
        state_bytes=token_bytes * cached,
        state_read_bytes=token_bytes * (cached + 1),
    )
