"""A candidate between its sampler and the study.

It is drawn in a scratch study in memory and enters the real one whole, when it is done, as one
transaction. So what is interrupted or killed leaves nothing behind and is proposed again, and
a trial's number is its place among the recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from optuna.trial import create_trial

from archsearch.search.records import ATTRIBUTE
from archsearch.search.records import Row
from archsearch.search.records import recorded_trials


@dataclass(frozen=True)
class Proposal:
    """The parameters that a sampler proposed, and what it noted about them."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    notes: Mapping[str, Any]
    started: datetime | None

    def finished(
        self, row: Row, *, values: Sequence[float], violations: Mapping[str, float]
    ) -> FrozenTrial:
        """The trial to add to the study."""
        trial = create_trial(
            params=dict(self.params),
            distributions=dict(self.distributions),
            values=values,
            constraints=dict(violations),
            user_attrs={ATTRIBUTE: row},
            system_attrs=dict(self.notes),
        )
        trial.datetime_start = self.started
        return trial


def propose(
    study: optuna.Study,
    sampler: BaseSampler,
    distributions: Mapping[str, BaseDistribution],
) -> Proposal:
    """Let a sampler propose the next candidate, given those that `study` holds."""
    with quiet():
        scratch = optuna.create_study(directions=study.directions, sampler=sampler)
    scratch.add_trials(recorded_trials(study))
    scratch.ask(dict(distributions))
    trial = scratch.get_trials(deepcopy=False)[-1]
    return Proposal(trial.params, distributions, trial.system_attrs, trial.datetime_start)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notes about new studies off the screen."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
