"""Settings of multi-head latent attention."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic import model_validator

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import derived
from archsearch.operators.base import fill_heads
from archsearch.operators.common.rope import RopeConfig

LARGEST_RANK = 512


class MLAConfig(OperatorConfig):
    """A query or key has `head_dim` channels without and `rope_head_dim` with rotation, the
    latter shared by the keys of all heads. Defaults: head width 128 (64 below hidden size
    1024), heads that fill the width, half as many rotated channels, values as wide as a head,
    a latent of a quarter of the width and at most 512 (DeepSeek-V2's), full-rank queries."""

    num_heads: int = derived()
    head_dim: int = derived()
    rope_head_dim: int = derived()
    v_head_dim: int = derived()
    kv_lora_rank: int = derived()
    q_lora_rank: int | None = Field(default=None, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    rope: RopeConfig = RopeConfig()
    max_position: int = Field(default=4096, gt=0)

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Derive heads, their widths and the latent's width from the hidden size."""
        head_dim = fill_heads(values)
        values.setdefault("rope_head_dim", max(4, head_dim // 2))
        values.setdefault("v_head_dim", head_dim)
        values.setdefault("kv_lora_rank", default_rank(values["hidden_size"]))
        return values

    @model_validator(mode="after")
    def _check_rotation(self) -> MLAConfig:
        if self.rope_head_dim % 2 or self.rope_head_dim < 4:
            raise ValueError(
                f"rope_head_dim must be even and at least 4; got {self.rope_head_dim}"
            )
        return self

    @property
    def qk_head_dim(self) -> int:
        """Channels of a query or key."""
        return self.head_dim + self.rope_head_dim

    @property
    def cache_width(self) -> int:
        """Channels that the cache keeps per token: the latent and the shared rotated key."""
        return self.kv_lora_rank + self.rope_head_dim


def default_rank(hidden_size: int) -> int:
    """A quarter of the hidden size, at most 512, at least 1."""
    return max(1, min(LARGEST_RANK, hidden_size // 4))
