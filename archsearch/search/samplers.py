"""Who proposes the next candidate: the published aging evolution, or one of Optuna's samplers.

A sampler lives for one candidate. It is seeded by (seed, k), where k counts recorded
candidates, and takes everything else from the recorded trials: so a run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import assert_never

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.samplers import NSGAIISampler
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import TrialState

from archsearch.search.config import RunConfig
from archsearch.search.encoding import distributions
from archsearch.space import Params
from archsearch.space import SearchSpace

Accept = Callable[[Params], bool]

# how often a proposal that would not be trained is drawn again
REDRAWS = 64


class SpaceSampler(BaseSampler):
    """Random search: draws from the space itself, so that every proposal is an architecture.

    `accept` says whether a proposal would be trained; one that would not is drawn again, and
    the last of `REDRAWS` is proposed all the same.
    """

    def __init__(self, space: SearchSpace, *, seed: int, k: int, accept: Accept) -> None:
        self._space = space
        self._k = k
        self._rng = np.random.default_rng((seed, k))
        self._accept = accept

    def propose(self, trials: Sequence[FrozenTrial]) -> Params:
        """Draw one architecture, given the recorded trials from the oldest to the newest."""
        return self._space.sample(self._rng)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Everything that the space has: `sample_relative` gives every parameter."""
        return distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose all parameters at once."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        for _ in range(REDRAWS):
            params = self.propose(trials)
            if self._accept(params):
                break
        return dict(params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Never reached: a space proposes every parameter of its distributions."""
        raise AssertionError(f"the space proposed no value for {param_name!r}")


class AgingEvolution(SpaceSampler):
    """Algorithm 1 of the paper (aging evolution, Real et al. 2019).

    The population is the last `population` recorded candidates, so the oldest leaves when a
    new one is recorded. A tournament is drawn from it, its best feasible member (else the one
    nearest to feasible) is the parent, and the child is the parent with exactly one mutation,
    repaired. Until there is a population: the seed architectures, then random ones.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        k: int,
        accept: Accept,
        population: int,
        tournament: int,
        seeds: Sequence[Params] = (),
    ) -> None:
        super().__init__(space, seed=seed, k=k, accept=accept)
        self._population = population
        self._tournament = tournament
        self._seeds = seeds

    def propose(self, trials: Sequence[FrozenTrial]) -> Params:
        """Mutate the winner of a tournament, or fill the initial population."""
        if self._k < len(self._seeds):
            return self._seeds[self._k]
        if self._k < self._population:
            return self._space.sample(self._rng)
        parent = self.select(trials[-self._population :])
        return self._space.repair(self._space.mutate(parent.params, self._rng))

    def select(self, population: Sequence[FrozenTrial]) -> FrozenTrial:
        """Draw a tournament without replacement and return its winner."""
        size = min(self._tournament, len(population))
        drawn = self._rng.choice(len(population), size=size, replace=False)
        return min((population[i] for i in drawn), key=_fitness)


class GenerationalNSGAII(NSGAIISampler):
    """Optuna's NSGA-II, resumable: the parents of a generation keep the order of their numbers.

    Optuna hands them to the first child in the order of their rank and to the others in the
    order of their numbers, so that an interrupted first child would be followed by another.
    """

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Select the parents and order them by number."""
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


def make_sampler(
    config: RunConfig,
    space: SearchSpace,
    *,
    k: int,
    accept: Accept = lambda params: True,
    seeds: Sequence[Params] = (),
) -> BaseSampler:
    """Make the sampler that proposes candidate `k` of a run."""
    number = int(np.random.SeedSequence((config.seed, k)).generate_state(1)[0])
    match config.sampler:
        case "evolution":
            return AgingEvolution(
                space,
                seed=config.seed,
                k=k,
                accept=accept,
                population=config.population,
                tournament=config.tournament,
                seeds=seeds,
            )
        case "random":
            return SpaceSampler(space, seed=config.seed, k=k, accept=accept)
        case "nsga2":
            return GenerationalNSGAII(population_size=config.population, seed=number)
        case "tpe":
            # the liar would learn from candidates that a killed process left behind
            return TPESampler(n_startup_trials=config.population, seed=number, constant_liar=False)
    assert_never(config.sampler)


def _fitness(trial: FrozenTrial) -> tuple[float, float, int]:
    violation = sum(max(0.0, value) for value in trial.constraints.values())
    return violation, trial.values[0], trial.number
