"""A latency table made ready for questions: every row is found once. Imports no torch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple
from weakref import WeakKeyDictionary

from archsearch import operators
from archsearch.latency.cases import ANY_CONTEXT
from archsearch.latency.cases import EMBEDDING
from archsearch.latency.cases import PARTS
from archsearch.latency.cases import Case
from archsearch.latency.cases import config_key
from archsearch.latency.surface import Row
from archsearch.latency.surface import Surface
from archsearch.operators import Phase
from archsearch.operators import Shape
from archsearch.operators.fused.table import PREFERRED
from archsearch.operators.fused.table import decode_backends
from archsearch.profiles import Table
from archsearch.profiles.schema import LATENCIES

_BACKENDS = {operator.name: operator.backends for operator in operators.OPERATORS}
_VALUES = (*LATENCIES, "roofline_us", "energy_j", "steady_us")


class Layer(NamedTuple):
    """What the rows of one surface have in common."""

    operator: str
    config: str
    hidden_size: int
    phase: Phase
    dtype: str


class LatencyIndex:
    """A table's rows by layer, batch and context; each question is answered once.

    Of several backends the one that its operator prefers counts.
    """

    def __init__(self, table: Table) -> None:
        self.name = table.label
        # rows that were left out, and why
        self._stale = {} if table.holds_stale else dict(table.stale)
        self._device = table.meta.get("hardware", {}).get("kind", "cpu")
        self._errors: dict[Case, str] = {}
        curves: dict[Layer, dict[int, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
        ranks: dict[Case, tuple[int, int]] = {}
        for case, backend, error, row in _read(table):
            if error:
                self._errors[case] = error
                continue
            rank = _backend_rank(case.operator, backend, case.batch)
            if case not in ranks or rank < ranks[case]:
                ranks[case] = rank
                curves[_layer(case)][case.batch][case.context] = row
        self.surfaces = {
            layer: Surface(by_batch, _work(layer)) for layer, by_batch in curves.items()
        }
        self._answers: dict[Case, Row] = {}

    def __getitem__(self, case: Case) -> Row:
        """The row of one layer or part; raises ValueError that says what was measured instead."""
        answer = self._answers.get(case)
        if answer is None:
            answer = self._answers[case] = self._find(case)
        return answer

    def _find(self, case: Case) -> Row:
        surface = self.surfaces.get(_layer(case))
        if case in self._errors and (
            surface is None or case.context not in surface.curves.get(case.batch, {})
        ):
            raise ValueError(
                f"the table {self.name!r} has no time for {case}: measuring it"
                f" failed with: {self._errors[case]}"
            )
        found = surface.at(case.batch, case.context) if surface is not None else None
        if found is not None:
            return found
        why = self._outside(case, surface) if surface is not None else self._missing(case)
        command = f"{measure(case)}{' --device cuda' if self._device == 'gpu' else ''}"
        raise ValueError(f"the table {self.name!r} {why} measure it with: {command}")

    def _outside(self, case: Case, surface: Surface) -> str:
        layer, batches = f"has {case.operator} at width {case.hidden_size}", surface.curves
        if not min(batches) <= case.batch <= max(batches):
            measured = _span("batch", "batches", batches)
            return f"{layer} in {case.phase} for {measured} and does not reach batch {case.batch};"
        # between two batches, what both of them reach
        below = max(batch for batch in batches if batch <= case.batch)
        above = min(batch for batch in batches if batch >= case.batch)
        low = max(min(batches[below]), min(batches[above]))
        high = min(max(batches[below]), max(batches[above]))
        measured = _span("context", "contexts", (low, high), before=f"{case.phase} ")
        return f"{layer}, batch {case.batch}, for {measured} and does not reach {case.context};"

    def _missing(self, case: Case) -> str:
        if reason := self._stale.get(case.operator):
            why = f"stale ones, measured with {reason}, are left out"
            return f"has no row for {case}, since {why}: allow them, or"
        alike = [layer for layer in self.surfaces if layer[:2] == (case.operator, case.config)]
        wanted = {"hidden_size": "width", "phase": "phase", "dtype": "dtype"}
        for field, word in wanted.items():
            others = sorted({getattr(layer, field) for layer in alike})
            if others and getattr(case, field) not in others:
                listed = ", ".join(map(str, others))
                return f"has no row for {case}, only for {word} {listed};"
        return f"has no row for {case};"


_indexes: WeakKeyDictionary[Table, LatencyIndex] = WeakKeyDictionary()


def index_of(table: Table) -> LatencyIndex:
    """The table's index, made at first use and kept as long as the table."""
    index = _indexes.get(table)
    if index is None:
        index = _indexes[table] = LatencyIndex(table)
    return index


def without_fused(table: Table, names: Iterable[str]) -> tuple[str, ...]:
    """Which of these operators (or "head") the table has decode rows of by the plain step alone,
    though on a GPU the fused one would run today."""
    if table.meta.get("hardware", {}).get("kind") != "gpu":
        return ()
    rows = table.rows[(table.rows["phase"] == "decode") & (table.rows["error"] == "")]
    fused = set(rows.loc[rows["backend"].str.split("+").str[0] == "triton", "operator"])
    plain = set(rows["operator"]) - fused
    return tuple(name for name in dict.fromkeys(names) if name in plain and name in PREFERRED)


def measure(case: Case) -> str:
    """The command that measures `case`."""
    context = f" --context {case.context}" if case.context != ANY_CONTEXT else ""
    return (
        f"archsearch profile {_what(case)} --phase {case.phase} --batch {case.batch}"
        f"{context} --dtype {case.dtype}"
    )


def _what(case: Case) -> str:
    if case.operator in PARTS:
        settings = json.loads(case.config)
        sizes = f"--widths {case.hidden_size} --vocab-size {settings['vocab_size']}"
        return "SPEC" if settings.get("head_norm") else sizes
    operator = operators.get(case.operator)
    if case.config == config_key(operator.configure(case.hidden_size)):
        return f"--operators {operator.code} --widths {case.hidden_size}"
    # no option says this: the architecture itself does
    return "SPEC"


def _read(table: Table) -> Iterable[tuple[Case, str, str, Row]]:
    columns = {name: table.rows[name].tolist() for name in table.rows}
    keys = zip(*(columns[name] for name in Case.__dataclass_fields__), strict=True)
    values = zip(*(columns[name] for name in _VALUES), strict=True)
    rest = zip(columns["backend"], columns["error"], strict=True)
    replay_us = _replay_us(table)
    for key, (backend, error), row in zip(keys, rest, values, strict=True):
        case, found = Case(*key), Row(*(math.nan if v is None else v for v in row))
        yield case, backend, error, found.plus(replay_us) if case.operator == EMBEDDING else found


def _replay_us(table: Table) -> float:
    """What a model pays once for the replay of its graph, and none of its rows holds (by method
    5 that of the embedding did): the median of the table's sessions."""
    found = [
        entry.get("ceilings", {}).get("replay_us") for entry in table.meta.get("sessions", ())
    ]
    return median([us for us in found if us is not None] or [0.0])


def _layer(case: Case) -> Layer:
    return Layer(case.operator, case.config, case.hidden_size, case.phase, case.dtype)


def _work(layer: Layer) -> Callable[[int], float]:
    """What a context asks of a layer, by its operator's own cost (see `surface`)."""

    def work(context: int) -> float:
        operator = operators.get(layer.operator)
        config = operator.configure(layer.hidden_size, **json.loads(layer.config))
        cost = operator.cost(config, Shape(layer.phase, context=context, dtype=layer.dtype))
        return cost.state_bytes if layer.phase == "decode" else cost.flops

    # embedding and head treat every token alike
    return float if layer.operator in PARTS else work


def _backend_rank(operator: str, backend: str, rows: int) -> tuple[int, int]:
    """Place of a label such as "fla+causal_conv1d" for so many rows: by its first part in the
    operator's order of preference, unknown ones last; then more special parts first."""
    own, *parts = backend.split("+")
    known = decode_backends(operator, _BACKENDS.get(operator, ()), rows)
    return known.index(own) if own in known else len(known), -len(parts)


def _span(one: str, many: str, values: Iterable[int], before: str = "") -> str:
    low, high = min(values), max(values)
    return f"{before}{one} {low}" if low == high else f"{before}{many} {low} to {high}"
