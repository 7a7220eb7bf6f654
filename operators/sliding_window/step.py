"""One decode step of a whole sliding-window layer: full attention's, which knows rings."""

from archsearch.operators.attention.step import refuses
from archsearch.operators.attention.step import step

__all__ = ["refuses", "step"]
