"""What figures and pages read from a run: rows by role, the winner against the baselines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from archsearch import operators

if TYPE_CHECKING:
    from archsearch.search import Run

# below this, two latencies count as the same: the spread of one measurement on a busy machine
SAME_LATENCY = 0.10


def trained(run: Run) -> pd.DataFrame:
    """Candidates that were trained to the end, in the order they were proposed."""
    rows = run.candidates
    return rows[rows["status"] == "trained"].sort_values("number") if len(rows) else rows


def members(run: Run) -> pd.DataFrame:
    """The rows of the front (the best among them), fastest first; empty before it exists."""
    return _front(run, ("best", "front"))


def baselines(run: Run) -> pd.DataFrame:
    """The baselines that were trained beside the front, fastest first."""
    rows = _front(run, ("baseline",))
    return rows[rows["status"] == "trained"]


def failed_baselines(run: Run) -> pd.DataFrame:
    """The baselines that could not be made or trained; `error` says why."""
    rows = _front(run, ("baseline",))
    return rows[rows["status"] != "trained"]


def best(run: Run) -> pd.Series | None:
    """The row of the winner; None before there is one."""
    rows = _front(run, ("best",))
    return rows.iloc[0] if len(rows) else None


def _front(run: Run, roles: tuple[str, ...]) -> pd.DataFrame:
    rows = run.front
    return rows[rows["role"].isin(roles)].sort_values("latency_us")


def shown(run: Run) -> pd.DataFrame:
    """Front and baselines, in that order: the rows that figures compare."""
    front, beside = members(run), baselines(run)
    return pd.concat([front, beside]) if len(beside) else front


def name(row: pd.Series) -> str:
    """Short name of a row of the front: `#12`, `#12 best`, or the baseline's label."""
    if row["role"] == "baseline":
        return str(row["label"])
    return f"#{row['number']:.0f}" + (" best" if row["role"] == "best" else "")


def codes(row: pd.Series) -> list[str]:
    """Operator codes of a row's layers, first layer first."""
    layers = json.loads(row["spec"])["layers"]
    return [operators.get(layer["operator"]).code for layer in layers]


def parts(row: pd.Series) -> dict[str, float]:
    """Predicted microseconds by part of the model: operators by code, then the rest."""
    predicted = json.loads(row["parts"])
    zoo = operators.names()
    by_code = {operators.get(key).code: predicted[key] for key in zoo if key in predicted}
    rest = {key: value for key, value in predicted.items() if key not in zoo}
    return {**by_code, **rest}


def curve(row: pd.Series) -> list[tuple[int, float]]:
    """Training loss as (step, nats per token)."""
    return [(int(step), float(loss)) for step, loss in row["curve"]]


def latency_us(row: pd.Series) -> float:
    """Measured median if the model was timed, the predicted latency otherwise."""
    return float(row["measured_us_p50"] if was_timed(row) else row["latency_us"])


def was_timed(row: pd.Series) -> bool:
    """Whether the built model was timed after the search."""
    return bool(pd.notna(row["measured_us_p50"]))


@dataclass(frozen=True)
class Comparison:
    """The winner against one baseline; a negative difference is in the winner's favour."""

    label: str
    loss_difference: float
    bits_difference: float
    latency_ratio: float
    both_timed: bool

    @property
    def same_latency(self) -> bool:
        """Whether the two latencies lie within `SAME_LATENCY` of each other."""
        return abs(self.latency_ratio - 1) <= SAME_LATENCY


def comparisons(run: Run) -> list[Comparison]:
    """The winner against each trained baseline; empty before both exist."""
    winner = best(run)
    if winner is None:
        return []
    return [
        Comparison(
            label=str(row["label"]),
            loss_difference=float(winner["loss"] - row["loss"]),
            bits_difference=float(winner["bits_per_byte"] - row["bits_per_byte"]),
            latency_ratio=latency_us(winner) / latency_us(row),
            both_timed=was_timed(winner) and was_timed(row),
        )
        for _, row in baselines(run).iterrows()
    ]
