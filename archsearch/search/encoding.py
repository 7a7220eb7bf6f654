"""A search space as Optuna sees it: a flat set of parameters, the same for every trial."""

from __future__ import annotations

from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import IntDistribution

from archsearch.space import Categorical
from archsearch.space import SearchSpace


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Translate the space's parameters into Optuna distributions."""
    return {
        name: CategoricalDistribution(tuple(choice.values))
        if isinstance(choice, Categorical)
        else IntDistribution(choice.low, choice.high)
        for name, choice in space.distributions().items()
    }
