"""From a table to a model's latency: the sum of its rows, never a guess. Imports no torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from archsearch import operators
from archsearch.latency.cases import ANY_CONTEXT
from archsearch.latency.cases import PARTS
from archsearch.latency.cases import Case
from archsearch.latency.cases import config_key
from archsearch.latency.cases import layer_case
from archsearch.latency.cases import part_cases
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.profiles.schema import LATENCIES
from archsearch.space import ArchSpec
from archsearch.space.count import layer_shape

_BACKENDS = {operator.name: operator.backends for operator in operators.OPERATORS}


class Quantiles(NamedTuple):
    """Microseconds."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Latency of a whole model: the sum of medians, by operator (with "embedding" and "head"),
    and, as low and high, the sums of the 10% and 90% quantiles."""

    latency_us: float
    parts: dict[str, float]
    low_us: float
    high_us: float


class LatencyIndex:
    """A table made ready for look-ups; each question is answered from the rows once."""

    def __init__(self, table: Table) -> None:
        self.name = table.label
        self.stale = table.stale
        self._errors: dict[Case, str] = {}
        # one curve over contexts per case; the preferred backend of each point
        points: dict[Case, dict[int, tuple[int, Quantiles]]] = defaultdict(dict)
        for row in table.rows.to_dict("records"):
            case = _case(row)
            if row["error"]:
                self._errors[case] = row["error"]
                continue
            curve = points[replace(case, context=ANY_CONTEXT)]
            rank = _backend_rank(case.operator, row["backend"])
            if case.context not in curve or rank < curve[case.context][0]:
                curve[case.context] = (rank, Quantiles(*(row[name] for name in LATENCIES)))
        self._curves = {
            case: {context: curve[context][1] for context in sorted(curve)}
            for case, curve in points.items()
        }
        self._answers: dict[Case, Quantiles] = {}

    def __getitem__(self, case: Case) -> Quantiles:
        """The latency of one layer or part; raises ValueError that names the missing row."""
        answer = self._answers.get(case)
        if answer is None:
            answer = self._answers[case] = self._find(case)
        return answer

    def _find(self, case: Case) -> Quantiles:
        curve = self._curves.get(replace(case, context=ANY_CONTEXT))
        if case in self._errors and (curve is None or case.context not in curve):
            raise ValueError(
                f"the table {self.name!r} has no time for {case}: measuring it"
                f" failed with: {self._errors[case]}"
            )
        if curve is None:
            raise ValueError(self._missing(case))
        if case.context in curve:
            return curve[case.context]
        contexts = list(curve)
        if not contexts[0] <= case.context <= contexts[-1]:
            raise ValueError(
                f"the table {self.name!r} has {case.operator} at width {case.hidden_size} for"
                f" {case.phase} contexts {contexts[0]} to {contexts[-1]} and does not reach"
                f" {case.context}; measure it with: {command(case)}"
            )
        return _interpolate(curve, case)

    def _missing(self, case: Case) -> str:
        why = ""
        if case.operator in self.stale:
            why = ", since its rows were measured with other sources of that operator"
        return (
            f"the table {self.name!r} has no row for {case}{why}; measure it with: {command(case)}"
        )


_indexes: WeakKeyDictionary[Table, LatencyIndex] = WeakKeyDictionary()


def index_of(table: Table) -> LatencyIndex:
    """The table's index, made at first use and kept as long as the table."""
    index = _indexes.get(table)
    if index is None:
        index = _indexes[table] = LatencyIndex(table)
    return index


def predict(spec: ArchSpec, shape: Shape, table: Table) -> Prediction:
    """Latency of `spec` at `shape`: one decode step, one prefill or one training step.

    Interpolates between measured contexts; raises ValueError that says which row is missing,
    or which range was measured, and the command that measures more.
    """
    parts: dict[str, float] = {}
    low = high = 0.0
    for operator, (p10, p50, p90) in _rows(spec, shape, index_of(table)):
        parts[operator] = parts.get(operator, 0.0) + p50
        low += p10
        high += p90
    return Prediction(sum(parts.values()), parts, low, high)


def predict_many(specs: Iterable[ArchSpec], shape: Shape, table: Table) -> NDArray[np.float64]:
    """Latencies [number of specs] in microseconds; raises as `predict` does."""
    index = index_of(table)
    return np.array(
        [sum(latency.p50 for _, latency in _rows(spec, shape, index)) for spec in specs],
        dtype=np.float64,
    )


def command(case: Case) -> str:
    """The command that measures `case`."""
    context = f" --context {case.context}" if case.context != ANY_CONTEXT else ""
    return (
        f"archsearch profile {_what(case)} --phase {case.phase} --batch {case.batch}"
        f"{context} --dtype {case.dtype}"
    )


def _what(case: Case) -> str:
    if case.operator in PARTS:
        vocabulary = json.loads(case.config)["vocab_size"]
        return f"--widths {case.hidden_size} --vocab-size {vocabulary}"
    operator = operators.get(case.operator)
    if case.config == config_key(operator.configure(case.hidden_size)):
        return f"--operators {operator.code} --widths {case.hidden_size}"
    # no option says this config: the architecture itself does
    return "SPEC"


def _rows(spec: ArchSpec, shape: Shape, index: LatencyIndex) -> Iterable[tuple[str, Quantiles]]:
    first, last = part_cases(spec, shape)
    yield first.operator, index[first]
    seen = layer_shape(spec, shape)
    for layer, config in zip(spec.layers, spec.configs, strict=True):
        yield layer.operator, index[layer_case(layer.operator, config, seen)]
    yield last.operator, index[last]


def _interpolate(curve: dict[int, Quantiles], case: Case) -> Quantiles:
    """Linear in the context for decode; along a power law for prefill and training."""
    contexts = np.array(list(curve), dtype=np.float64)
    values = np.array(list(curve.values()), dtype=np.float64)
    if case.phase == "decode":
        return Quantiles(*(float(np.interp(case.context, contexts, v)) for v in values.T))
    x, logs = np.log(contexts), np.log(values)
    at = np.log(case.context)
    return Quantiles(*(float(np.exp(np.interp(at, x, v))) for v in logs.T))


def _case(row: dict[Any, Any]) -> Case:
    return Case(
        row["operator"],
        row["config"],
        row["hidden_size"],
        row["phase"],
        row["batch"],
        row["context"],
        row["dtype"],
    )


def _backend_rank(operator: str, backend: str) -> int:
    """Place of a backend in its operator's order of preference; unknown ones come last."""
    known = _BACKENDS.get(operator, ())
    return known.index(backend) if backend in known else len(known)
