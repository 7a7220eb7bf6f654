"""Settings of Mamba-2."""

from __future__ import annotations

from pydantic import Field

from archsearch.operators.base import StateDtype
from archsearch.operators.common.config import InnerHeadsConfig


class Mamba2Config(InnerHeadsConfig):
    """Heads that fill an inner width, behind a short convolution of `d_conv` taps; groups of them
    share the input and output maps B and C."""

    d_conv: int = Field(default=4, ge=2)
    conv_bias: bool = True
    norm_eps: float = Field(default=1e-5, gt=0)
    chunk_size: int = Field(default=64, gt=0)
    state_dtype: StateDtype = "model"

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: x, B and C."""
        return self.d_inner + 2 * self.num_groups * self.d_state
