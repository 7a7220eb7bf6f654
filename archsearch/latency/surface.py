"""Measured rows of one layer over batch and context, and what holds between them.

Decode: linear in the batch, and in what the state holds, which for a sliding window ends to
grow at the window. Prefill and training: along a power law of the tokens. Never outside.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from archsearch.operators import Phase


class Row(NamedTuple):
    """One layer: microseconds and joules; not a number where the table does not tell."""

    p10: float
    p50: float
    p90: float
    floor_us: float
    energy_j: float


# context -> row
Curve = Mapping[int, Row]


@dataclass(frozen=True, slots=True)
class Surface:
    """The rows of one layer in one phase; `depth` gives the state that a context needs."""

    phase: Phase
    curves: Mapping[int, Curve]
    depth: Callable[[int], float]

    def at(self, batch: int, context: int) -> Row | None:
        """The row at this point, interpolated if need be; None outside what was measured."""
        curve = self.curves.get(batch)
        if curve is not None and (found := self._along(curve, context)) is not None:
            return found
        reaching = {
            rows: found
            for rows, curve in self.curves.items()
            if (found := self._along(curve, context)) is not None
        }
        sides = _around(reaching, batch)
        if sides is None:
            return None
        low, high = sides
        share = _share(low, high, batch, logarithmic=self._power_law)
        return _blend(reaching[low], reaching[high], share, geometric=self._power_law)

    def left_out(self) -> Iterator[tuple[str, int, int, Row, Row]]:
        """Every inner row ("context" or "batch", batch, context, measured, predicted) beside
        what its neighbours along that axis alone would have said."""
        for batch, curve in self.curves.items():
            for context, row in curve.items():
                others = {key: value for key, value in curve.items() if key != context}
                alone = Surface(self.phase, {batch: others}, self.depth)
                if (found := alone.at(batch, context)) is not None:
                    yield "context", batch, context, row, found
                across = {
                    key: {context: value[context]}
                    for key, value in self.curves.items()
                    if key != batch and context in value
                }
                found = Surface(self.phase, across, self.depth).at(batch, context)
                if found is not None:
                    yield "batch", batch, context, row, found

    @property
    def _power_law(self) -> bool:
        return self.phase != "decode"

    def _along(self, curve: Curve, context: int) -> Row | None:
        if context in curve:
            return curve[context]
        sides = _around(curve, context)
        if sides is None:
            return None
        low, high = sides
        if self._power_law:
            share = _share(low, high, context, logarithmic=True)
        else:
            share = self._grown(low, high, context)
        return _blend(curve[low], curve[high], share, geometric=self._power_law)

    def _grown(self, low: int, high: int, context: int) -> float:
        """The share of the state's growth from `low` to `high` that `context` has seen."""
        first, last = self.depth(low), self.depth(high)
        if first == last:
            return _share(low, high, context)
        return (self.depth(context) - first) / (last - first)


def _around(points: Iterable[int], at: int) -> tuple[int, int] | None:
    """The nearest points on both sides of `at`; None where one is missing."""
    ordered = sorted(points)
    right = bisect_left(ordered, at)
    if right == len(ordered):
        return None
    if ordered[right] == at:
        return at, at
    return (ordered[right - 1], ordered[right]) if right else None


def _share(low: float, high: float, at: float, *, logarithmic: bool = False) -> float:
    if low == high:
        return 0.0
    if logarithmic:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _blend(low: Row, high: Row, share: float, *, geometric: bool) -> Row:
    if geometric:
        return Row(*(_power(a, b, share) for a, b in zip(low, high, strict=True)))
    return Row(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))


def _power(low: float, high: float, share: float) -> float:
    # a part that costs nothing has no logarithm
    return low ** (1 - share) * high**share if low > 0 and high > 0 else math.nan
