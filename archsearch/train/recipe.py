"""How a model is trained: one frozen, hashable value. No torch here."""

from __future__ import annotations

import hashlib
from typing import Any
from typing import Literal

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from pydantic import model_validator

from archsearch.operators.base import sentence


class Recipe(BaseModel):
    """Everything that decides a training run except the model, the data and the seed.

    lr: peak learning rate; it falls along a cosine to `min_lr_ratio` of it. warmup_steps:
    linear, within `steps`. grad_clip: largest gradient norm, None for no clipping.
    weight_norm: project the weights to unit norm after every step; the decay is then off.
    eval_tokens: how many held-out tokens are predicted at the end. dtype: bfloat16 means
    autocast, the weights stay in the model's own dtype.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=300, ge=1)
    batch_size: int = Field(default=8, ge=1)
    seq_len: int = Field(default=256, ge=1)
    lr: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    weight_norm: bool = False
    eval_tokens: int = Field(default=32768, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps must be at most steps ({self.steps}); got {self.warmup_steps}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1); got {list(self.betas)}")
        return self

    @classmethod
    def create(cls, **fields: Any) -> Recipe:
        """Make a recipe from a user's values; raises ValueError with one clear sentence."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ValueError(sentence(error, "recipe")) from None

    @property
    def id(self) -> str:
        """12 hex digits that change with any field."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
