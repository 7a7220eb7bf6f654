"""Settings of Gated DeltaProduct."""

from __future__ import annotations

from pydantic import Field

from archsearch.operators.gated_deltanet.config import GatedDeltaNetConfig


class GatedDeltaProductConfig(GatedDeltaNetConfig):
    """Defaults as Gated DeltaNet's, with two writes per token; write strengths reach to 2,
    where a write mirrors the state (`allow_neg_eigval`)."""

    num_householder: int = Field(default=2, gt=0)
    allow_neg_eigval: bool = True
