"""One decode step of a whole Gated DeltaNet layer: DeltaNet's, which knows decay and gate."""

from archsearch.operators.deltanet.step import refuses
from archsearch.operators.deltanet.step import step

__all__ = ["refuses", "step"]
