"""How far a search is and when it ends, from what its candidates really took."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from archsearch.search.config import RunConfig
from archsearch.search.observer import Observer
from archsearch.search.records import COUNTED


class Pace(Observer):
    """Counts trainings, those of the baselines included, and the time that they took."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.total = 0
        self.finished = 0.0
        self._partial = 0.0

    def start(self, config: RunConfig, *, trials: int, counted: int) -> None:
        """Count what is left to train."""
        self._began = self._clock()
        self.total = max(0, trials - counted) + len(config.baselines)

    def training_step(self, k: int, step: int, steps: int, loss: float) -> None:
        """Count a part of a training."""
        self._partial = step / steps

    def candidate_recorded(self, k: int, row: Mapping[str, Any], *, counted: int) -> None:
        """Count a candidate that was trained or failed."""
        if row["status"] in COUNTED:
            self._finish()

    def baseline_recorded(self, row: Mapping[str, Any]) -> None:
        """Count a baseline."""
        self._finish()

    def remaining_s(self) -> float | None:
        """Seconds until the end at the pace so far; None before the first step of training."""
        behind = self.finished + self._partial
        if behind == 0:
            return None
        left = max(0.0, self.total - behind)
        return left * (self._clock() - self._began) / behind

    def _finish(self) -> None:
        self.finished += 1
        self._partial = 0.0
