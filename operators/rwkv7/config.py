"""Settings of RWKV-7 time mixing."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import StateDtype
from archsearch.operators.base import derived
from archsearch.operators.base import divide_heads


class RWKV7Config(OperatorConfig):
    """Heads fill the hidden size. The ranks default to the published rules: multiples of 32
    near 2.5 sqrt(H) for decay and learning rate (more for heads wider than 64) and near
    5 sqrt(H) for the gate."""

    head_dim: int = Field(default=64, gt=0)
    decay_rank: int = derived()
    rate_rank: int = derived()
    gate_rank: int = derived()
    norm_eps: float = Field(default=1e-5, gt=0)
    state_dtype: StateDtype = "float32"

    @property
    def num_heads(self) -> int:
        """Heads that fill the hidden size."""
        return self.hidden_size // self.head_dim

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Derive the ranks from the width."""
        hidden = values["hidden_size"]
        head_dim = values.setdefault("head_dim", 64)
        divide_heads(hidden, head_dim)
        wide = head_dim / 64
        values.setdefault("decay_rank", _rank(2.5 * wide, hidden))
        values.setdefault("rate_rank", _rank(2.5 * wide, hidden))
        values.setdefault("gate_rank", _rank(5.0, hidden))
        return values


def _rank(factor: float, hidden_size: int) -> int:
    return max(32, 32 * round(factor * hidden_size**0.5 / 32))
