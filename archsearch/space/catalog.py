"""The search spaces by name."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from archsearch.names import suggestion
from archsearch.space.free import FreeSpace
from archsearch.space.nemotron_flash import NemotronFlashSpace
from archsearch.space.nemotron_flash import NemotronFlashWideSpace
from archsearch.space.search_space import SearchSpace
from archsearch.space.search_space import WidthMode

SPACES: tuple[type[SearchSpace], ...] = (NemotronFlashSpace, NemotronFlashWideSpace, FreeSpace)
PUBLISHED_WIDTHS = (1024, 1280, 1536, 1792, 2048, 2304, 2560)
PUBLISHED_CODES = ("a", "m2", "d")

_BY_NAME = {space.name: space for space in SPACES}


def get_space(
    name: str,
    *,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    codes: Sequence[str] = PUBLISHED_CODES,
    max_layers: int = 30,
    width: WidthMode = "largest",
    fields: Mapping[str, Any] | None = None,
) -> SearchSpace:
    """Make a search space; raises ValueError for an unknown name (it names what exists) and
    for widths, codes or fields that do not fit together."""
    if name not in _BY_NAME:
        hint = suggestion(name, _BY_NAME)
        raise ValueError(f"unknown space {name!r}; {hint}there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name](
        widths=widths, codes=codes, max_layers=max_layers, width=width, fields=fields
    )


def space_names() -> tuple[str, ...]:
    """Names of all search spaces."""
    return tuple(_BY_NAME)
