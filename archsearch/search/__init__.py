"""The search: an Optuna study of architectures, from a config to a timed Pareto front."""

from __future__ import annotations

from archsearch.search.config import RunConfig
from archsearch.search.evaluate import Costs
from archsearch.search.evaluate import Evaluator
from archsearch.search.evaluate import Scores
from archsearch.search.evaluate import TableEvaluator
from archsearch.search.evolve import evolve
from archsearch.search.observer import Observer
from archsearch.search.pace import Pace
from archsearch.search.pareto import hypervolume
from archsearch.search.pareto import non_dominated
from archsearch.search.run import Run
from archsearch.search.run import load_run

__all__ = [
    "Costs",
    "Evaluator",
    "Observer",
    "Pace",
    "Run",
    "RunConfig",
    "Scores",
    "TableEvaluator",
    "evolve",
    "hypervolume",
    "load_run",
    "non_dominated",
]
