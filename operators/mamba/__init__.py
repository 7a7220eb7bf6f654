"""Mamba: a selective state-space layer with one decay per channel, state entry and step."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.mamba.config import MambaConfig
from archsearch.operators.mamba.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: MambaConfig) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.mamba.module import Mamba

    return Mamba(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """State widths and inner widths."""
    del hidden_size
    return {"d_state": (8, 16, 32), "expand": (1, 2)}


MAMBA = Operator(
    name="mamba",
    code="m1",
    title="Mamba",
    kind="mixer",
    config=MambaConfig,
    build=build,
    cost=cost,
    choices=choices,
    backends=("mamba_ssm", "torch", "reference"),
    source="Gu and Dao 2023, arXiv 2312.00752",
)
