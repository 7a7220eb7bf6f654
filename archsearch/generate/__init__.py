"""Prefill, decode and sampling: text out of a `HybridLM`."""

from archsearch.generate.engine import Generation
from archsearch.generate.engine import generate
from archsearch.generate.sampling import Sampling
from archsearch.generate.sampling import sample

__all__ = ["Generation", "Sampling", "generate", "sample"]
