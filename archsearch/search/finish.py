"""After the search: the front, timed on built models, its winner, and what it has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from archsearch.search import baselines
from archsearch.search.loop import TRAINING_ERRORS
from archsearch.search.loop import Search
from archsearch.search.pareto import non_dominated
from archsearch.search.records import COUNTED
from archsearch.search.records import Row
from archsearch.search.records import baseline_key
from archsearch.search.records import copy_scores
from archsearch.search.records import recorded_rows
from archsearch.search.run import Run
from archsearch.search.screen import Candidate
from archsearch.space import ArchSpec

# a baseline within this share of the winner's measured latency is as fast; so many are tried
SAME_LATENCY, MATCHES = 0.05, 4

_UNMEASURED = {f"measured_us_p{percent}": None for percent in (10, 50, 90)}


def front_rows(run: Run) -> list[Row]:
    """The trained feasible candidates that no other beats, fastest first, not yet timed."""
    rows = [r for r in recorded_rows(run.study) if r["status"] == "trained" and r["feasible"]]
    if not rows:
        return []
    kept = non_dominated([[row[name] for name in run.config.objectives] for row in rows])
    front = [
        row | _UNMEASURED | {"role": "front", "label": row["notation"], "meets_target": None}
        for row, keep in zip(rows, kept, strict=True)
        if keep
    ]
    front.sort(key=lambda row: (row["latency_us"], row["loss"]))
    return front


def save_untimed(run: Run) -> None:
    """Write the front as far as it is known, its best by predicted latency."""
    rows = front_rows(run)
    _choose(rows)
    run.write_front(rows)


def finish(search: Search) -> Row | None:
    """Time the front, choose the winner, train the baselines, write it all; return the winner.

    The winner has the lowest loss of those whose measured latency meets the target; where none
    does, it is the fastest, with `meets_target` false.
    """
    run = search.run
    rows = front_rows(run)
    for done, row in enumerate(rows, start=1):
        _time(row, search)
        run.log("remeasured", **_measured(row))
        search.observer.remeasured(row, done=done, total=len(rows))
    winner = _choose(rows)
    # what is known so far stays, whatever happens to the baselines
    run.write_front(rows)
    if winner is not None:
        rows += [_baseline(unit, winner, search) for unit in run.config.baselines]
        run.write_front(rows)
    return winner


def _choose(rows: Sequence[Row]) -> Row | None:
    if not rows:
        return None
    meeting = [row for row in rows if row["meets_target"] is not False]
    if meeting:
        winner = min(meeting, key=lambda row: row["loss"])
    else:
        winner = min(rows, key=_measured_or_inf)
    winner["role"] = "best"
    return winner


def _time(row: Row, search: Search) -> None:
    try:
        timing = search.evaluator.measure(ArchSpec.model_validate_json(row["spec"]))
    except TRAINING_ERRORS as error:
        row |= {"error": f"{type(error).__name__}: {error}", "meets_target": False}
        return
    row |= {
        "measured_us_p10": timing.p10_us,
        "measured_us_p50": timing.p50_us,
        "measured_us_p90": timing.p90_us,
    }
    limit = search.config.limits.get("latency_us")
    row["meets_target"] = None if limit is None else timing.p50_us <= limit


def _measured_or_inf(row: Row) -> float:
    measured = row["measured_us_p50"]
    return math.inf if measured is None else float(measured)


def _baseline(unit: str, winner: Row, search: Search) -> Row:
    label = baselines.label(unit)
    try:
        candidate = _matched(unit, winner, search)
    except ValueError as error:
        # a baseline that cannot be made is a row with its error, not a gap
        row = dict.fromkeys(winner) | _UNMEASURED | {"curve": [], "error": str(error)}
        row |= {"status": "failed", "feasible": False, "number": -1}
    else:
        search.observer.baseline_started(label, candidate)
        row = _train_baseline(candidate, search) | _UNMEASURED
        _time(row, search)
    row |= {"role": "baseline", "label": label, "meets_target": row.get("meets_target")}
    search.run.log("baseline", label=label, error=row["error"], **_measured(row))
    search.observer.baseline_recorded(row)
    return row


def _matched(unit: str, winner: Row, search: Search) -> Candidate:
    """The model of `unit` that is as fast as the winner by measurement: a table's error differs
    between patterns, so each match is timed and the next one corrected by it."""
    key = f"matched:{winner['id']}:{unit}"
    if (known := search.study.user_attrs.get(key)) is not None:
        return search.screen.judge(ArchSpec.model_validate_json(known))
    best = search.screen.judge(ArchSpec.model_validate_json(winner["spec"]))
    found: dict[str, tuple[float, Candidate]] = {}
    limit = best.costs.latency_us
    for _ in range(MATCHES):
        try:
            candidate = baselines.match(unit, best, search.screen, search.config, latency_us=limit)
        except ValueError:
            if not found:
                raise
            break
        if candidate.spec.id in found:
            break
        factor = _time_factor(candidate, winner, search)
        found[candidate.spec.id] = (abs(math.log(factor)), candidate)
        if found[candidate.spec.id][0] < SAME_LATENCY:
            break
        limit = candidate.costs.latency_us / factor
    _, nearest = min(found.values(), key=lambda pair: pair[0])
    search.study.set_user_attr(key, nearest.spec.model_dump_json())
    return nearest


def _time_factor(candidate: Candidate, winner: Row, search: Search) -> float:
    """How many times the winner's measured latency a candidate takes; 1 if that is unknown."""
    if winner["measured_us_p50"] is None:
        return 1.0
    try:
        return float(search.evaluator.measure(candidate.spec).p50_us / winner["measured_us_p50"])
    except TRAINING_ERRORS:
        return 1.0


def _train_baseline(candidate: Candidate, search: Search) -> Row:
    key = baseline_key(candidate.spec.id)
    known = {row["id"]: row for row in recorded_rows(search.study) if row["status"] in COUNTED}
    source = known.get(candidate.spec.id) or search.study.user_attrs.get(key)
    if source is not None:
        return copy_scores(search.row(candidate, -1, source["status"], None), source)
    (scores,) = search.execute(lambda spec: search.train(spec, -1), [candidate.spec])
    row = search.row(candidate, -1, scores.status, scores)
    search.study.set_user_attr(key, row)
    return row


def _measured(row: Row) -> dict[str, Any]:
    names = ("id", "notation", "loss", "latency_us", "measured_us_p50")
    return {name: row[name] for name in names}
