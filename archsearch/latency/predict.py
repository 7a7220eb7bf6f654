"""From a table to a model's latency: the sum of its rows, never a guess. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from archsearch.latency.cases import ANY_CONTEXT
from archsearch.latency.cases import Case
from archsearch.latency.cases import layer_case
from archsearch.latency.cases import part_cases
from archsearch.latency.lookup import LatencyIndex
from archsearch.latency.lookup import index_of
from archsearch.latency.surface import Row
from archsearch.operators import Shape
from archsearch.profiles import Table
from archsearch.space import ArchSpec
from archsearch.space import LayerSpec
from archsearch.space.count import layer_shape

# a GPU that begins rested keeps its highest clocks at work that its power cap does not allow for
# at least 20 ms, and for about so long (experiments/power-cap); a longer call gives way then
GIVES_WAY_US = 50_000.0


@dataclass(frozen=True, slots=True)
class Part:
    """All layers of one operator, "embedding" or "head": how many, their microseconds (median,
    10 % and 90 % quantile), the least by the datasheet, and joules and microseconds of steady
    work, where the table tells."""

    operator: str
    calls: int
    latency_us: float
    low_us: float
    high_us: float
    floor_us: float | None
    energy_j: float | None
    steady_us: float | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A whole model for one decode step, prefill or training step: the sum of its parts, in the
    order of the model."""

    by_operator: tuple[Part, ...]

    @property
    def latency_us(self) -> float:
        """The sum of medians; of a long call, the late share of it in steady work."""
        return sum(part.latency_us for part in self.by_operator)

    @property
    def low_us(self) -> float:
        """The same of 10 % quantiles; from a scaled table the lower bound."""
        return sum(part.low_us for part in self.by_operator)

    @property
    def high_us(self) -> float:
        """The same of 90 % quantiles; from a scaled table the upper bound."""
        return sum(part.high_us for part in self.by_operator)

    @property
    def parts(self) -> dict[str, float]:
        """Median microseconds by operator, "embedding" and "head"."""
        return {part.operator: part.latency_us for part in self.by_operator}

    @property
    def floor_us(self) -> float | None:
        """The least time by the datasheet, layer after layer."""
        return _known(sum(_number(part.floor_us) for part in self.by_operator))

    @property
    def steady_us(self) -> float | None:
        """The time of one call after another, for which a GPU may give way to its power cap."""
        return _known(sum(_number(part.steady_us) for part in self.by_operator))

    @property
    def energy_j(self) -> float | None:
        """Joules of all tokens of the shape, of one call after another."""
        return _known(sum(_number(part.energy_j) for part in self.by_operator))


def predict(spec: ArchSpec, shape: Shape, table: Table) -> Prediction:
    """Latency of `spec` at `shape`: one decode step, one prefill or one training step, begun
    rested.

    Interpolates between measured batches and contexts; raises ValueError that says which row
    is missing, or which range was measured, and the command that measures more.
    """
    page = _pages_of(table, shape).of(spec)
    rows: dict[str, list[tuple[int, Row]]] = {"embedding": [(1, page.embedding)]}
    for key, calls in Counter(page.keys(spec)).items():
        operator = key if isinstance(key, str) else key[0]
        rows.setdefault(operator, []).append((calls, page.rows[key]))
    rows["head"] = [(1, page.head)]
    found = Prediction(tuple(_part(*item) for item in rows.items()))
    late = _late_share(found.latency_us)
    if not late or found.steady_us is None:
        return found
    return Prediction(tuple(_given_way(part, late) for part in found.by_operator))


def predict_many(specs: Iterable[ArchSpec], shape: Shape, table: Table) -> NDArray[np.float64]:
    """Latencies [number of specs] in microseconds; raises as `predict` does."""
    pages = _pages_of(table, shape)
    return np.array([pages.of(spec).total(spec) for spec in specs], dtype=np.float64)


def predict_patterns(
    patterns: Iterable[tuple[int, Sequence[str]]],
    shape: Shape,
    table: Table,
    **fields: Any,
) -> NDArray[np.float64]:
    """Latencies [number of patterns] in microseconds of (hidden size, operator codes or names)
    with the operators' defaults; `fields` are those of `ArchSpec`. Raises as `predict` does.

    For millions of candidates: it makes no `ArchSpec` of each.
    """
    pages = _pages_of(table, shape)
    known: dict[int, _Defaults] = {}
    found = []
    for width, codes in patterns:
        times = known.get(width)
        if times is None:
            times = known[width] = _Defaults(pages, {**fields, "hidden_size": width})
        total = times.rest_us + sum(map(times.__getitem__, codes))
        found.append(total if total <= GIVES_WAY_US else times.given_way(total, codes))
    return np.array(found, dtype=np.float64)


# an operator's name, and what its config overrides if it does
_Key = str | tuple[str, str]


class _Page:
    """What the models of one width, vocabulary and number of meta tokens need at one shape."""

    def __init__(self, spec: ArchSpec, shape: Shape, index: LatencyIndex) -> None:
        self._index, self._meta_tokens = index, spec.num_meta_tokens
        self._seen = layer_shape(spec, shape)
        self.embedding, self.head = (self._row(case) for case in part_cases(spec, shape))
        self.rest_us = self.embedding.p50 + self.head.p50
        self.rest_steady_us = self.embedding.steady_us + self.head.steady_us
        self.rows: dict[_Key, Row] = {}
        self._medians: dict[_Key, float] = {}
        self._steady: dict[_Key, float] = {}

    def total(self, spec: ArchSpec) -> float:
        """What `predict` says of its latency."""
        # `_key` written out: searches come through here by the millions
        keys = [layer.operator if not layer.config else _key(layer) for layer in spec.layers]
        try:
            total = self.rest_us + sum(map(self._medians.__getitem__, keys))
        except KeyError:
            self.keys(spec)
            total = self.rest_us + sum(map(self._medians.__getitem__, keys))
        if total <= GIVES_WAY_US:
            return total
        steady = self.rest_steady_us + sum(map(self._steady.__getitem__, keys))
        return _with_late(total, steady, _late_share(total))

    def keys(self, spec: ArchSpec) -> list[_Key]:
        """The key in `rows` of every layer; raises ValueError for one that the table lacks."""
        found = [_key(layer) for layer in spec.layers]
        for layer, config, key in zip(spec.layers, spec.configs, found, strict=True):
            if key not in self.rows:
                row = self._row(layer_case(layer.operator, config, self._seen))
                self.rows[key], self._medians[key], self._steady[key] = row, row.p50, row.steady_us
        return found

    def _row(self, case: Case) -> Row:
        try:
            return self._index[case]
        except ValueError as error:
            if not self._meta_tokens or case.context == ANY_CONTEXT:
                raise
            raise ValueError(f"{error} ({self._meta_tokens} meta tokens are counted)") from None


class _Pages(dict[tuple[int, int, bool, int], _Page]):
    """The pages of one table at one shape."""

    def __init__(self, shape: Shape, index: LatencyIndex) -> None:
        self._shape, self._index = shape, index

    def of(self, spec: ArchSpec) -> _Page:
        """The page of a model; raises ValueError where the table lacks embedding or head."""
        key = (spec.hidden_size, spec.vocab_size, spec.head_norm, spec.num_meta_tokens)
        page = self.get(key)
        if page is None:
            page = self[key] = _Page(spec, self._shape, self._index)
        return page


class _Defaults(dict[str, float]):
    """Median microseconds by operator code or name with default configs, found when asked for."""

    def __init__(self, pages: _Pages, fields: Mapping[str, Any]) -> None:
        self._pages, self._fields = pages, fields
        page = pages.of(self._spec())
        self.rest_us, self._rest_steady_us = page.rest_us, page.rest_steady_us
        self._steady: dict[str, float] = {}

    def __missing__(self, code: str) -> float:
        spec = self._spec(code)
        page = self._pages.of(spec)
        row = page.rows[page.keys(spec)[0]]
        self[code], self._steady[code] = row.p50, row.steady_us
        return row.p50

    def given_way(self, total: float, codes: Sequence[str]) -> float:
        """The latency of a model whose medians sum to `total`, more than GIVES_WAY_US."""
        steady = sum(self._steady[code] for code in codes)
        return _with_late(total, self._rest_steady_us + steady, _late_share(total))

    def _spec(self, *codes: str) -> ArchSpec:
        return ArchSpec.create(**self._fields, layers=[{"operator": code} for code in codes])


_books: WeakKeyDictionary[Table, dict[Shape, _Pages]] = WeakKeyDictionary()


def _pages_of(table: Table, shape: Shape) -> _Pages:
    book = _books.setdefault(table, {})
    pages = book.get(shape)
    if pages is None:
        pages = book[shape] = _Pages(shape, index_of(table))
    return pages


def _key(layer: LayerSpec) -> _Key:
    return (layer.operator, repr(layer.config)) if layer.config else layer.operator


def _part(operator: str, found: Sequence[tuple[int, Row]]) -> Part:
    p10, p50, p90, floor, energy, steady = (
        sum(calls * row[field] for calls, row in found) for field in range(len(Row._fields))
    )
    calls = sum(calls for calls, _ in found)
    return Part(operator, calls, p50, p10, p90, _known(floor), _known(energy), _known(steady))


def _late_share(us: float) -> float:
    """The share of a call of so many microseconds in which the power cap may hold."""
    return max(0.0, 1.0 - GIVES_WAY_US / us)


def _with_late(us: float, steady_us: float, late: float) -> float:
    """A time at the highest clocks with the share `late` of it in steady work, where that is
    known."""
    return us if math.isnan(steady_us) else us + late * (steady_us - us)


def _given_way(part: Part, late: float) -> Part:
    """A part of a call of which the share `late` is steady work."""
    stretch = _with_late(part.latency_us, _number(part.steady_us), late) / part.latency_us
    return replace(
        part,
        latency_us=stretch * part.latency_us,
        low_us=stretch * part.low_us,
        high_us=stretch * part.high_us,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
