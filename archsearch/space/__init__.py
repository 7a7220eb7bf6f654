"""What an architecture is and which ones a search may choose from. Imports no torch."""

from __future__ import annotations

from archsearch.operators.common.rope import RopeConfig
from archsearch.space import count
from archsearch.space import presets
from archsearch.space.catalog import get_space
from archsearch.space.catalog import space_names
from archsearch.space.load import load
from archsearch.space.load import parse
from archsearch.space.search_space import Categorical
from archsearch.space.search_space import Distribution
from archsearch.space.search_space import Integer
from archsearch.space.search_space import Params
from archsearch.space.search_space import SearchSpace
from archsearch.space.spec import ArchSpec
from archsearch.space.spec import LayerSpec

__all__ = [
    "ArchSpec",
    "Categorical",
    "Distribution",
    "Integer",
    "LayerSpec",
    "Params",
    "RopeConfig",
    "SearchSpace",
    "count",
    "get_space",
    "load",
    "parse",
    "presets",
    "space_names",
]
