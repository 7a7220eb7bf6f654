"""Measured rows of one layer over batch and context, and what holds between them.

Between two contexts a time grows as the layer's work does: in decode with the bytes of state,
which for a sliding window stop growing at the window, in prefill and training with the FLOPs,
which for attention grow faster than the context. Between two batches it is linear. What a
layer costs at no work at all (launches, weights) is in both neighbours and so in between, which
a power law would get wrong by a third. Nothing is said outside of what was measured.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """One layer: microseconds at the highest clocks and in steady work, and joules; not a number
    where the table does not tell."""

    p10: float
    p50: float
    p90: float
    floor_us: float
    energy_j: float
    steady_us: float

    def plus(self, us: float) -> Row:
        """It with so many microseconds more."""
        return self._replace(
            p10=self.p10 + us,
            p50=self.p50 + us,
            p90=self.p90 + us,
            steady_us=self.steady_us + us,
        )


# context -> row
Curve = Mapping[int, Row]


class LeftOut(NamedTuple):
    """A measured row, and what its neighbours along `axis` ("context", "batch") say instead."""

    axis: str
    batch: int
    context: int
    measured: Row
    predicted: Row


@dataclass(frozen=True, slots=True)
class Surface:
    """The rows of one layer in one phase, by batch; `work` says what a context asks of it."""

    curves: Mapping[int, Curve]
    work: Callable[[int], float]

    def at(self, batch: int, context: int) -> Row | None:
        """The row at this point, interpolated if need be; None outside what was measured."""
        if found := self._along(self.curves.get(batch, {}), context):
            return found
        reached = {
            rows: found
            for rows, curve in self.curves.items()
            if (found := self._along(curve, context))
        }
        if (sides := _around(reached, batch)) is None:
            return None
        low, high = sides
        return _blend(reached[low], reached[high], _share(low, high, batch))

    def left_out(self) -> Iterator[LeftOut]:
        """Every row that has neighbours on both sides, once along each axis that has."""
        for batch, curve in self.curves.items():
            for context, row in curve.items():
                along = {batch: {key: value for key, value in curve.items() if key != context}}
                across = {
                    key: {context: other[context]}
                    for key, other in self.curves.items()
                    if key != batch and context in other
                }
                for axis, rest in (("context", along), ("batch", across)):
                    if found := Surface(rest, self.work).at(batch, context):
                        yield LeftOut(axis, batch, context, row, found)

    def _along(self, curve: Curve, context: int) -> Row | None:
        if context in curve:
            return curve[context]
        if (sides := _around(curve, context)) is None:
            return None
        low, high = sides
        first, last = self.work(low), self.work(high)
        if first == last:
            share = _share(low, high, context)
        else:
            share = _share(first, last, self.work(context))
        return _blend(curve[low], curve[high], share)


def _around(points: Iterable[int], at: int) -> tuple[int, int] | None:
    """The nearest points on both sides of `at`, itself among them; None where one is missing."""
    ordered = sorted(points)
    right = bisect_left(ordered, at)
    if right == len(ordered):
        return None
    if ordered[right] == at:
        return at, at
    return (ordered[right - 1], ordered[right]) if right else None


def _share(low: float, high: float, at: float) -> float:
    return (at - low) / (high - low) if high != low else 0.0


def _blend(low: Row, high: Row, share: float) -> Row:
    return Row(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))
