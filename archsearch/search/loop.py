"""The search itself: propose, screen, train, record; one candidate at a time."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from archsearch.search.config import RunConfig
from archsearch.search.encoding import distributions
from archsearch.search.evaluate import Evaluator
from archsearch.search.evaluate import Scores
from archsearch.search.evaluate import failed
from archsearch.search.evaluate import worst_loss
from archsearch.search.executors import Executor
from archsearch.search.executors import in_process
from archsearch.search.observer import Observer
from archsearch.search.proposal import Proposal
from archsearch.search.proposal import propose
from archsearch.search.records import COUNTED
from archsearch.search.records import Row
from archsearch.search.records import Status
from archsearch.search.records import baseline_key
from archsearch.search.records import copy_scores
from archsearch.search.records import make_row
from archsearch.search.records import recorded_rows
from archsearch.search.run import Run
from archsearch.search.samplers import make_sampler
from archsearch.search.screen import Candidate
from archsearch.search.screen import Screen
from archsearch.space import ArchSpec
from archsearch.space import Params
from archsearch.space import SearchSpace
from archsearch.space import parse

# candidates in a row that need no training, after which the space counts as used up
MAX_FREE = 100
# what a model that cannot be trained raises; anything else is a mistake of ours or the user's
TRAINING_ERRORS = (RuntimeError, ArithmeticError, MemoryError)
_LOGGED = ("number", "id", "notation", "status", "loss", "latency_us", "seconds", "error")


class Search:
    """Fills a study with candidates. All of its state is the study: it can stop anywhere."""

    def __init__(
        self,
        run: Run,
        space: SearchSpace,
        *,
        screen: Screen,
        evaluator: Evaluator,
        observer: Observer,
        seeds: Sequence[Params] = (),
        execute: Executor = in_process,
    ) -> None:
        self.run = run
        self.study = run.study
        self.config = run.config
        self.space = space
        self.screen = screen
        self.evaluator = evaluator
        self.observer = observer
        self.execute = execute
        self._distributions = distributions(space)
        self._seeds = seeds

    def fill(self, trials: int) -> str | None:
        """Record candidates until `trials` of them count, or say why there are no more."""
        while True:
            rows = recorded_rows(self.study)
            if counted(rows) >= trials:
                return None
            free = _free_in_a_row(rows)
            if free >= MAX_FREE:
                return (
                    f"the last {free} candidates were too slow, too large or known already: "
                    f"stopped at {counted(rows)} of {trials} trials"
                )
            self.step(rows)

    def step(self, rows: Sequence[Row]) -> Row:
        """Propose, evaluate and record the next candidate; `rows` are the recorded ones."""
        k = len(rows)
        trained = {row["id"]: row for row in rows if row["status"] in COUNTED}
        proposal = self._propose(k, trained)
        candidate = self.screen(proposal.params)
        row = self._evaluate(k, candidate, trained)
        values = _values(row, candidate, self.config.objectives)
        self.study.add_trial(
            proposal.finished(row, values=values, violations=candidate.violations)
        )
        self.run.log("candidate", **{name: row[name] for name in _LOGGED})
        self.observer.candidate_recorded(k, row, counted=counted([*rows, row]))
        return row

    def train(self, spec: ArchSpec, k: int) -> Scores:
        """Train one architecture; an error of the training is a failed score."""
        steps = self.config.recipe.steps

        def on_step(step: int, loss: float) -> None:
            self.observer.training_step(k, step, steps, loss)

        try:
            return self.evaluator.score(spec, self.config.seed, on_step=on_step)
        except TRAINING_ERRORS as error:
            return failed(spec, f"{type(error).__name__}: {error}")

    def row(self, candidate: Candidate, number: int, status: Status, scores: Scores | None) -> Row:
        """Make the row of a candidate of this run."""
        return make_row(
            candidate,
            number=number,
            status=status,
            scores=scores,
            seed=self.config.seed,
            recipe=self.config.recipe.id,
        )

    def _propose(self, k: int, trained: Mapping[str, Row]) -> Proposal:
        def accept(params: Params) -> bool:
            candidate = self.screen(params)
            return candidate.feasible and candidate.spec.id not in trained

        sampler = make_sampler(self.config, self.space, k=k, accept=accept, seeds=self._seeds)
        return propose(self.study, sampler, self._distributions)

    def _evaluate(self, k: int, candidate: Candidate, trained: Mapping[str, Row]) -> Row:
        if not candidate.feasible:
            return self.row(candidate, k, "infeasible", None)
        if (known := trained.get(candidate.spec.id)) is not None:
            return copy_scores(self.row(candidate, k, "duplicate", None), known)
        # a baseline of the front before this run went on
        if (known := self.study.user_attrs.get(baseline_key(candidate.spec.id))) is not None:
            return copy_scores(self.row(candidate, k, known["status"], None), known)
        self.observer.candidate_started(k, candidate)
        (scores,) = self.execute(lambda spec: self.train(spec, k), [candidate.spec])
        return self.row(candidate, k, scores.status, scores)


def counted(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of `rows` count as trials: those trained or failed."""
    return sum(row["status"] in COUNTED for row in rows)


def _free_in_a_row(rows: Sequence[Row]) -> int:
    free = 0
    for row in reversed(rows):
        if row["status"] in COUNTED:
            break
        free += 1
    return free


def _values(row: Row, candidate: Candidate, objectives: Sequence[str]) -> list[float]:
    known = row | {"loss": worst_loss(candidate.spec) if row["loss"] is None else row["loss"]}
    return [float(known[name]) for name in objectives]


def encode_seeds(config: RunConfig, space: SearchSpace) -> list[Params]:
    """The seed architectures as parameters; raises ValueError where the space has them not."""
    return [space.encode(parse(notation, **config.fields)) for notation in config.seeds]
