"""What a search tells while it runs; the command line draws it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archsearch.search.config import RunConfig
from archsearch.search.screen import Candidate


class Observer:
    """Hears of every event and does nothing: override what you want to show.

    Counts are those of `--trials`: candidates trained or failed. A row is a dict with the
    columns of `Run.candidates` (`candidate_recorded`) or of `Run.front` (the others).
    """

    def start(self, config: RunConfig, *, trials: int, counted: int) -> None:
        """The search begins or goes on, with `counted` of `trials` behind it."""

    def candidate_started(self, k: int, candidate: Candidate) -> None:
        """Candidate `k` is about to be trained."""

    def training_step(self, k: int, step: int, steps: int, loss: float) -> None:
        """One step of the training of candidate `k` (a baseline: k = -1) is done."""

    def candidate_recorded(self, k: int, row: Mapping[str, Any], *, counted: int) -> None:
        """Candidate `k` is in the study."""

    def stopped(self, reason: str) -> None:
        """The search ends before its trials are used up."""

    def remeasured(self, row: Mapping[str, Any], *, done: int, total: int) -> None:
        """A member of the front was built and timed."""

    def baseline_started(self, label: str, candidate: Candidate) -> None:
        """A baseline is about to be trained."""

    def baseline_recorded(self, row: Mapping[str, Any]) -> None:
        """A baseline was trained and timed."""

    def done(self, winner: Mapping[str, Any] | None) -> None:
        """Everything is written; `winner` is the best row of the front."""
