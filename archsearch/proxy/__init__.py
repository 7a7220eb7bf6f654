"""Cheap evidence of how good an architecture is."""

from archsearch.proxy.short_training import Score
from archsearch.proxy.short_training import score

__all__ = ["Score", "score"]
