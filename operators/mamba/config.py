"""Settings of Mamba."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import StateDtype
from archsearch.operators.base import derived


class MambaConfig(OperatorConfig):
    """Inner width `expand` times the hidden size; the time steps come from `dt_rank`
    features (default: a sixteenth of the hidden size, rounded up)."""

    d_state: int = Field(default=16, gt=0)
    expand: int = Field(default=2, gt=0)
    d_conv: int = Field(default=4, ge=2)
    conv_bias: bool = True
    dt_rank: int = derived()
    state_dtype: StateDtype = "model"

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Derive the rank of the time steps from the width."""
        values.setdefault("dt_rank", -(-values["hidden_size"] // 16))
        return values

    @property
    def d_inner(self) -> int:
        """Inner width: channels of the scan."""
        return self.expand * self.hidden_size
