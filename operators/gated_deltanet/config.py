"""Settings of Gated DeltaNet."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from archsearch.operators.base import default_head_dim
from archsearch.operators.base import derived
from archsearch.operators.deltanet.config import DeltaNetConfig


class GatedDeltaNetConfig(DeltaNetConfig):
    """Defaults: keys that fill three quarters of the width, values twice as wide; more value
    heads than key heads means that neighbouring value heads share a key."""

    num_v_heads: int = derived()
    use_gate: bool = True

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Derive head widths and heads from the width."""
        hidden = values["hidden_size"]
        head_dim = values.setdefault("head_dim", default_head_dim(hidden))
        values.setdefault("v_head_dim", 2 * head_dim)
        if "num_heads" not in values:
            values["num_heads"] = max(1, round(0.75 * hidden / max(1, head_dim)))
        values.setdefault("num_v_heads", values["num_heads"])
        return values

    @model_validator(mode="after")
    def _check_heads(self) -> GatedDeltaNetConfig:
        if self.num_v_heads % self.num_heads:
            raise ValueError(
                f"num_v_heads must be a multiple of num_heads {self.num_heads};"
                f" got {self.num_v_heads}"
            )
        return self
