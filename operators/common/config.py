"""Settings that Mamba-2 and Mamba-3 share."""

from __future__ import annotations

from typing import Self

from pydantic import Field
from pydantic import model_validator

from archsearch.operators.base import OperatorConfig


class InnerHeadsConfig(OperatorConfig):
    """Heads of width `head_dim` fill the inner width, `expand` times the hidden size;
    `num_groups` of them share the maps B and C between their input and `d_state` channels."""

    d_state: int = Field(default=128, gt=0)
    expand: int = Field(default=2, gt=0)
    head_dim: int = Field(default=64, gt=0)
    num_groups: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.d_inner % self.head_dim:
            raise ValueError(
                f"hidden_size times expand must be a multiple of head_dim {self.head_dim};"
                f" got {self.hidden_size} times {self.expand}"
            )
        if self.num_heads % self.num_groups:
            raise ValueError(
                f"num_groups must divide the {self.num_heads} heads"
                f" (hidden_size times expand over head_dim); got {self.num_groups}"
            )
        return self

    @property
    def d_inner(self) -> int:
        """Inner width: channels of all heads together."""
        return self.expand * self.hidden_size

    @property
    def num_heads(self) -> int:
        """Heads that fill the inner width."""
        return self.d_inner // self.head_dim
