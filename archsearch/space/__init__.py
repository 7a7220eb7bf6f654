"""What an architecture is and which ones a search may choose from. Imports no torch."""

from __future__ import annotations

from archsearch.operators.common.rope import RopeConfig
from archsearch.space import count
from archsearch.space import presets
from archsearch.space.load import load
from archsearch.space.load import parse
from archsearch.space.spec import ArchSpec
from archsearch.space.spec import LayerSpec

__all__ = [
    "ArchSpec",
    "LayerSpec",
    "RopeConfig",
    "count",
    "load",
    "parse",
    "presets",
]
