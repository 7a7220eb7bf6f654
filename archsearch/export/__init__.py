"""Architectures written out for other tools: one explicit table of formats."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from archsearch.export.json import to_json
from archsearch.names import suggestion
from archsearch.space import ArchSpec

# format -> text of the exported file
EXPORTERS: MappingProxyType[str, Callable[[ArchSpec], str]] = MappingProxyType({"json": to_json})


def export(spec: ArchSpec, to: str) -> str:
    """The architecture in the format `to`; raises ValueError that names the formats."""
    if to not in EXPORTERS:
        hint = suggestion(to, EXPORTERS)
        raise ValueError(f"unknown format {to!r}; {hint}there are {', '.join(EXPORTERS)}")
    return EXPORTERS[to](spec)


__all__ = ["EXPORTERS", "export", "to_json"]
