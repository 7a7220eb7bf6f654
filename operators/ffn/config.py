"""Settings of the feed-forward network."""

from __future__ import annotations

from typing import Any
from typing import Literal

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import derived


class FFNConfig(OperatorConfig):
    """Width `intermediate_size` (default: three times the hidden size) and activation."""

    intermediate_size: int = derived()
    activation: Literal["swiglu", "relu2"] = "swiglu"

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Three times the hidden size."""
        values.setdefault("intermediate_size", 3 * values["hidden_size"])
        return values
