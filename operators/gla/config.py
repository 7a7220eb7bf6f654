"""Settings of gated linear attention."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import StateDtype
from archsearch.operators.base import derived
from archsearch.operators.base import fill_heads


class GLAConfig(OperatorConfig):
    """`head_dim` is the width of a head's values. Defaults: 128 (64 below hidden size 1024),
    heads that fill the width, keys half as wide as values."""

    num_heads: int = derived()
    head_dim: int = derived()
    k_head_dim: int = derived()
    gate_rank: int = Field(default=16, gt=0)
    gate_normalizer: float = Field(default=16.0, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    state_dtype: StateDtype = "float32"

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Derive head widths and heads from the width."""
        head_dim = fill_heads(values)
        values.setdefault("k_head_dim", max(1, head_dim // 2))
        return values
