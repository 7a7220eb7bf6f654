"""Settings of full attention."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic import model_validator

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import derived
from archsearch.operators.base import fill_heads
from archsearch.operators.common.rope import RopeConfig


class AttentionConfig(OperatorConfig):
    """Heads need not multiply to the hidden size. Defaults: head width 128 (64 below hidden
    size 1024), heads that fill the width, a quarter as many key/value heads."""

    num_heads: int = derived()
    head_dim: int = derived()
    num_kv_heads: int = derived()
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_eps: float = Field(default=1e-6, gt=0)
    rope: RopeConfig = RopeConfig()
    max_position: int = Field(default=4096, gt=0)

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Derive head width, heads and key/value heads from the width."""
        fill_heads(values)
        values.setdefault("num_kv_heads", default_kv_heads(values["num_heads"]))
        return values

    @model_validator(mode="after")
    def _check_heads(self) -> AttentionConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads {self.num_heads}; got {self.num_kv_heads}"
            )
        if self.head_dim % 2 or self.head_dim < 4:
            raise ValueError(f"head_dim must be even and at least 4; got {self.head_dim}")
        return self


def default_kv_heads(num_heads: int) -> int:
    """The largest divisor of the heads that is at most a quarter of them, at least 1."""
    return max(k for k in range(1, max(1, num_heads // 4) + 1) if num_heads % k == 0)
