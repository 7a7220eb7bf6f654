"""The cheap judgement before any training: a candidate's width, its costs, what it violates."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from archsearch.search.config import RunConfig
from archsearch.search.evaluate import Costs
from archsearch.space import ArchSpec
from archsearch.space import SearchSpace

# random candidates, then mutations of the fastest, that a target is tried on
PROBES = 128


@dataclass(frozen=True, slots=True)
class Candidate:
    """A decoded proposal; `violations` gives (cost / limit - 1), above 0 where it is too big."""

    spec: ArchSpec
    costs: Costs
    violations: Mapping[str, float]

    @property
    def feasible(self) -> bool:
        """Whether every limit is kept."""
        return all(value <= 0 for value in self.violations.values())


class Screen:
    """Decodes proposals of a run: the widest architecture within its limits, else the smallest."""

    def __init__(
        self, config: RunConfig, space: SearchSpace, costs: Callable[[ArchSpec], Costs]
    ) -> None:
        self._space = space
        self._limits = config.limits
        self._widest = config.width == "largest"
        self._costs = costs
        self._known: dict[str, Candidate] = {}

    def __call__(self, params: Mapping[str, str | int]) -> Candidate:
        """Decode `params`; raises ValueError where the costs cannot be predicted."""
        repaired = self._space.repair(dict(params))
        if not self._widest:
            return self.judge(self._space.decode(repaired))
        spec = self._space.fit_width(repaired, lambda spec: self.judge(spec).feasible)
        if spec is None:
            spec = self._space.decode(repaired, min(self._space.widths))
        return self.judge(spec)

    def judge(self, spec: ArchSpec) -> Candidate:
        """Predict the costs of an architecture and hold them against the limits."""
        if spec.id not in self._known:
            costs = self._costs(spec)
            violations = {
                name: getattr(costs, name) / limit - 1.0 for name, limit in self._limits.items()
            }
            self._known[spec.id] = Candidate(spec, costs, violations)
        return self._known[spec.id]


def check_limits(screen: Screen, config: RunConfig, space: SearchSpace) -> None:
    """Find a candidate within the limits, or raise ValueError that names the nearest found."""
    rng = np.random.default_rng(config.seed)
    nearest: Candidate | None = None
    best = space.sample(rng)
    for probe in range(2 * PROBES):
        params = space.sample(rng) if probe < PROBES else space.mutate(best, rng)
        candidate = screen(params)
        if candidate.feasible:
            return
        if nearest is None or _excess(candidate) < _excess(nearest):
            nearest, best = candidate, params
    assert nearest is not None, "no probe was made"
    raise ValueError(_sentence(nearest, config))


def _excess(candidate: Candidate) -> float:
    return max(candidate.violations.values())


def _sentence(nearest: Candidate, config: RunConfig) -> str:
    name = max(nearest.violations, key=lambda key: nearest.violations[key])
    at = f"{nearest.spec.notation} ({len(nearest.spec.layers)} layers)"
    if name == "latency_us":
        return (
            f"no candidate of the space {config.space!r} meets the target latency of "
            f"{config.target_latency_ms:g} ms per token: the fastest found, {at}, takes "
            f"{nearest.costs.latency_us / 1000:.4g} ms"
        )
    return (
        f"no candidate of the space {config.space!r} has at most "
        f"{config.limits[name]:.0f} {name}: the smallest found, {at}, "
        f"has {getattr(nearest.costs, name)}"
    )
