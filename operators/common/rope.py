"""Rotary position embeddings: settings (no torch) and tables.

The half-rotation layout (GPT-NeoX): dimension i is paired with i + D/2. Legend: D head width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from typing import Literal

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import model_validator

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RopeConfig(BaseModel):
    """How positions turn queries and keys.

    default: base `theta`. ntk: the base grows once with max_position / original_max_position
    (as Nemotron-Flash does). dynamic_ntk: it grows with the capacity of the decode state.
    llama3: long wavelengths are stretched by `factor` (Llama 3.1 and later).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["default", "ntk", "dynamic_ntk", "llama3"] = "default"
    theta: float = Field(default=10000.0, gt=0)
    original_max_position: int | None = Field(default=None, gt=0)
    factor: float = Field(default=1.0, ge=1)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _needs_original(self) -> RopeConfig:
        if self.type != "default" and self.original_max_position is None:
            raise ValueError(f"rope type {self.type!r} needs original_max_position")
        if self.type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be greater than low_freq_factor")
        return self


def inverse_frequencies(
    rope: RopeConfig,
    head_dim: int,
    max_position: int,
    *,
    capacity: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Inverse frequencies [D/2] in fp32 for sequences of up to `capacity` tokens.

    `capacity` matters to dynamic_ntk alone: its base is fixed by the room that a decode state
    has, since a base that follows the running length would change what earlier tokens saw.
    """
    import torch

    base = rope.theta
    original = rope.original_max_position or max_position
    if rope.type == "ntk":
        base = _grown(base, max_position, original, head_dim)
    elif rope.type == "dynamic_ntk" and capacity > original:
        base = _grown(base, capacity, original, head_dim)
    # computed where it is used: a CUDA graph cannot capture a copy from the host
    dimension = torch.arange(head_dim // 2, device=device, dtype=torch.float64)
    inverse = torch.pow(base, -2 * dimension / head_dim)
    if rope.type == "llama3":
        inverse = _llama3(inverse, rope, original)
    return inverse.float()


def _grown(base: float, length: int, original: int, head_dim: int) -> float:
    return float(base * (2 * length / original - 1) ** (head_dim / (head_dim - 2)))


def _llama3(inverse: Tensor, rope: RopeConfig, original: int) -> Tensor:
    """Short wavelengths stay, long ones are stretched, those between are blended."""
    turns = original * inverse / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * inverse + (1 - kept) * inverse / rope.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x[..., D] by tables cos, sin[..., D/2] (fp32 tables are cast to x's dtype)."""
    import torch

    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def tables(inverse: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [..., D/2] in fp32 at integer `positions`[...]."""
    angles = positions[..., None].float() * inverse.float()
    return angles.cos(), angles.sin()
