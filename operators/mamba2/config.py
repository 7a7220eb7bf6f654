"""Settings of Mamba-2."""

from __future__ import annotations

from pydantic import Field
from pydantic import model_validator

from archsearch.operators.base import OperatorConfig
from archsearch.operators.base import StateDtype


class Mamba2Config(OperatorConfig):
    """Heads of width `head_dim` fill the inner width, `expand` times the hidden size;
    `num_groups` of them share the input and output maps B and C."""

    d_state: int = Field(default=128, gt=0)
    expand: int = Field(default=2, gt=0)
    head_dim: int = Field(default=64, gt=0)
    num_groups: int = Field(default=1, gt=0)
    d_conv: int = Field(default=4, ge=2)
    conv_bias: bool = True
    norm_eps: float = Field(default=1e-5, gt=0)
    chunk_size: int = Field(default=64, gt=0)
    state_dtype: StateDtype = "model"

    @model_validator(mode="after")
    def _check_heads(self) -> Mamba2Config:
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

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: x, B and C."""
        return self.d_inner + 2 * self.num_groups * self.d_state
