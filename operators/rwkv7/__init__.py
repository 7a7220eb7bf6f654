"""RWKV-7 time mixing: a matrix state that decays, forgets one direction and learns another."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from archsearch.operators.base import Operator
from archsearch.operators.rwkv7.config import RWKV7Config
from archsearch.operators.rwkv7.cost import cost

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer


def build(config: RWKV7Config) -> Mixer:
    """Make the torch module."""
    from archsearch.operators.rwkv7.module import RWKV7 as RWKV7Mixer

    return RWKV7Mixer(config)


def choices(hidden_size: int) -> dict[str, tuple[Any, ...]]:
    """Head widths 32, 64 and 128, where they divide the hidden size."""
    return {"head_dim": tuple(width for width in (32, 64, 128) if hidden_size % width == 0)}


RWKV7 = Operator(
    name="rwkv7",
    code="r7",
    title="RWKV-7",
    kind="mixer",
    config=RWKV7Config,
    build=build,
    cost=cost,
    choices=choices,
    backends=("fla", "torch", "reference"),
    source="Peng et al. 2025, arXiv 2503.14456",
)
