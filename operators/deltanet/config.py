"""Settings of DeltaNet."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import StateDtype
from archsearch.operators.base import derived
from archsearch.operators.base import fill_heads


class DeltaNetConfig(OperatorConfig):
    """Defaults: head width 128 (64 below hidden size 1024) for keys and values, heads that
    fill the width, convolutions of 4 taps."""

    num_heads: int = derived()
    head_dim: int = derived()
    v_head_dim: int = derived()
    conv_size: int = Field(default=4, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    state_dtype: StateDtype = "float32"

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Derive head widths and heads from the width."""
        head_dim = fill_heads(values)
        values.setdefault("v_head_dim", head_dim)
        return values
