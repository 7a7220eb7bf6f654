"""A recorded candidate: one flat row, kept with its trial, and the table of all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from typing import Literal

import pandas as pd
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import TrialState

from archsearch.search.evaluate import Scores
from archsearch.search.screen import Candidate

Status = Literal["trained", "failed", "infeasible", "duplicate"]
Row = dict[str, Any]

# statuses that `--trials` counts
COUNTED = ("trained", "failed")
ATTRIBUTE = "candidate"
COLUMNS = (
    "number",
    "id",
    "notation",
    "hidden_size",
    "num_layers",
    "parameters",
    "state_bytes",
    "loss",
    "bits_per_byte",
    "perplexity",
    "latency_us",
    "feasible",
    "status",
    "error",
    "seconds",
    "tokens_per_s",
    "curve",
    "spec",
    "parts",
    "seed",
    "recipe",
)
FRONT_COLUMNS = (
    *COLUMNS,
    "role",
    "label",
    "measured_us_p10",
    "measured_us_p50",
    "measured_us_p90",
    "meets_target",
)
_SCORES = ("loss", "bits_per_byte", "perplexity", "seconds", "tokens_per_s", "curve", "error")
_NUMBERS = ("loss", "bits_per_byte", "perplexity", "seconds", "tokens_per_s")


def make_row(
    candidate: Candidate,
    *,
    number: int,
    status: Status,
    scores: Scores | None,
    seed: int,
    recipe: str,
) -> Row:
    """Flatten a candidate and its scores into JSON values; a number that is missing is None."""
    spec, costs = candidate.spec, candidate.costs
    row = {
        "number": number,
        "id": spec.id,
        "notation": spec.notation,
        "hidden_size": spec.hidden_size,
        "num_layers": len(spec.layers),
        "parameters": costs.parameters,
        "state_bytes": costs.state_bytes,
        "latency_us": costs.latency_us,
        "feasible": candidate.feasible,
        "status": status,
        "spec": spec.model_dump_json(),
        "parts": json.dumps(dict(costs.parts)),
        "seed": seed,
        "recipe": recipe,
    }
    return row | _score_fields(scores)


def copy_scores(row: Row, source: Mapping[str, Any]) -> Row:
    """Return `row` with the scores of a candidate that is the same architecture."""
    return row | {name: source[name] for name in _SCORES}


def _score_fields(scores: Scores | None) -> Row:
    if scores is None:
        return dict.fromkeys(_NUMBERS) | {"curve": [], "error": ""}
    fields = {name: value for name, value in asdict(scores).items() if name in _SCORES}
    for name in _NUMBERS:
        if not math.isfinite(fields[name]):
            fields[name] = None
    # what diverged may hold values that JSON has not
    points = [[step, loss] for step, loss in scores.curve if math.isfinite(loss)]
    return fields | {"curve": points}


def baseline_key(spec_id: str) -> str:
    """Attribute of a study that keeps the row of a baseline, which is no candidate."""
    return f"baseline:{spec_id}"


def recorded_trials(study: Study) -> list[FrozenTrial]:
    """Trials that count as recorded, from the oldest to the newest."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def recorded_rows(study: Study) -> list[Row]:
    """Rows of the recorded candidates, from the oldest to the newest; raises ValueError where a
    trial holds none."""
    trials = recorded_trials(study)
    for trial in trials:
        if ATTRIBUTE not in trial.user_attrs:
            raise ValueError(
                f"trial {trial.number} of the study {study.study_name!r} is no candidate that"
                " archsearch recorded"
            )
    return [trial.user_attrs[ATTRIBUTE] for trial in trials]


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Make the table of `rows`; a missing number is NaN."""
    frame = pd.DataFrame([dict(row) for row in rows], columns=list(columns))
    measured = [name for name in columns if name.startswith("measured_us")]
    numbers = [*_NUMBERS, *measured, "latency_us"]
    return frame.astype(dict.fromkeys(numbers, "float64"))
