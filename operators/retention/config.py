"""Settings of retention."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic import field_validator

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import StateDtype
from archsearch.operators.base import derived
from archsearch.operators.base import fill_heads
from archsearch.operators.common.rope import RopeConfig


class RetentionConfig(OperatorConfig):
    """`head_dim` is the width of a head's queries and keys. Defaults: 128 (64 below hidden
    size 1024), heads that fill the width, values twice as wide as keys."""

    num_heads: int = derived()
    head_dim: int = derived()
    v_head_dim: int = derived()
    norm_eps: float = Field(default=1e-5, gt=0)
    rope: RopeConfig = RopeConfig()
    max_position: int = Field(default=4096, gt=0)
    state_dtype: StateDtype = "float32"

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Derive head widths and heads from the width."""
        head_dim = fill_heads(values)
        values.setdefault("v_head_dim", 2 * head_dim)
        return values

    @field_validator("head_dim")
    @classmethod
    def _check_even(cls, head_dim: int) -> int:
        if head_dim % 2 or head_dim < 4:
            raise ValueError("must be even and at least 4")
        return head_dim
