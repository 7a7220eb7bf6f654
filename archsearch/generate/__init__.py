"""Prefill, decode and sampling: text out of a `HybridLM`."""

from archsearch.generate.engine import generate
from archsearch.generate.sampling import GREEDY
from archsearch.generate.sampling import Sampling
from archsearch.generate.sampling import sample
from archsearch.generate.session import Generation
from archsearch.generate.session import Session

__all__ = ["GREEDY", "Generation", "Sampling", "Session", "generate", "sample"]
