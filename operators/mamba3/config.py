"""Settings of Mamba-3 (single input, single output)."""

from __future__ import annotations

from typing import Self

from pydantic import Field
from pydantic import model_validator

from archsearch.operators.base import StateDtype
from archsearch.operators.common.config import InnerHeadsConfig


class Mamba3Config(InnerHeadsConfig):
    """Heads that fill an inner width; groups of them share the maps B and C before each head's
    own bias and rotation. Of `d_state` channels the share `rope_fraction` turns. `out_norm` adds
    an RMS norm per head before the gate."""

    d_state: int = Field(default=128, gt=1)
    rope_fraction: float = 0.5
    a_floor: float = Field(default=1e-4, gt=0)
    out_norm: bool = False
    norm_eps: float = Field(default=1e-5, gt=0)
    chunk_size: int = Field(default=64, gt=0)
    state_dtype: StateDtype = "float32"

    @model_validator(mode="after")
    def _check_rotation(self) -> Self:
        if self.rope_fraction not in (0.5, 1.0):
            raise ValueError(f"rope_fraction must be 0.5 or 1.0; got {self.rope_fraction}")
        if self.num_angles < 1:
            raise ValueError(
                f"d_state times rope_fraction must be at least 2;"
                f" got {self.d_state} times {self.rope_fraction}"
            )
        return self

    @property
    def num_angles(self) -> int:
        """Pairs of state channels that turn."""
        return int(self.d_state * self.rope_fraction) // 2

    @property
    def splits(self) -> list[int]:
        """Widths of what `in_proj` makes: z, x, B, C, dt, A, trapezoid weight, angles."""
        maps, heads = self.num_groups * self.d_state, self.num_heads
        return [self.d_inner, self.d_inner, maps, maps, heads, heads, heads, self.num_angles]
