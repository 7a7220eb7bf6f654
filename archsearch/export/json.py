"""The resolved architecture as JSON: nothing left to defaults, so other tools need no zoo."""

from __future__ import annotations

from archsearch.space import ArchSpec


def to_json(spec: ArchSpec) -> str:
    """Indented JSON with every layer's complete config; `archsearch.space.load` reads it back
    to an architecture of the same id."""
    return spec.resolved_json(indent=2) + "\n"
