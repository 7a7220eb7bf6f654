"""From an `ArchSpec` to a PyTorch model that trains, prefills and decodes."""

from archsearch.model.layer import Layer
from archsearch.model.lm import HybridLM
from archsearch.model.lm import build
from archsearch.model.state import DecodeState
from archsearch.model.weight_norm import normalize_weights_

__all__ = ["DecodeState", "HybridLM", "Layer", "build", "normalize_weights_"]
