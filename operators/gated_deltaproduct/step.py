"""One decode step of a whole Gated DeltaProduct layer: DeltaNet's, which knows several writes."""

from archsearch.operators.deltanet.step import refuses
from archsearch.operators.deltanet.step import step

__all__ = ["refuses", "step"]
