"""How well predictions agree with whole models: relative errors by group, and rank order."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from archsearch.latency.calibration import CalibrationError
from archsearch.latency.calibration import Group
from archsearch.latency.calibration import group_key
from archsearch.operators import Shape

# what a calibration should reach: (phase, more than one row) -> median and p90 of the error
_TARGETS = {
    ("decode", False): (0.03, 0.06),
    ("decode", True): (0.05, 0.10),
    ("prefill", False): (0.05, 0.10),
}
TAU_TARGET, BAND_TAU_TARGET = 0.95, 0.8
# models of one latency: those within this share of it
BAND = 0.10


@dataclass(frozen=True, slots=True)
class Comparison:
    """One whole model at one shape: what the table said, and what the device did. In
    microseconds; where another quantity is compared (see `calibrate.OTHERS`), in its unit."""

    name: str
    shape: Shape
    predicted_us: float
    measured_us: float

    @property
    def error(self) -> float:
        """Relative: 0.02 where the prediction is 2 % above the measurement."""
        return self.predicted_us / self.measured_us - 1


@dataclass(frozen=True, slots=True)
class RankOrder:
    """Kendall's tau of predicted against measured batch-1 decode latency at one context: over
    all models, and within the most that lie within 10 % of one measured latency."""

    context: int
    count: int
    tau: float | None
    band_us: float
    band: tuple[str, ...]
    band_tau: float | None


def target_of(group: Group) -> CalibrationError | None:
    """What the errors of such a group should not exceed; None where nothing is asked."""
    target = _TARGETS.get(group_key(group.phase, group.batches[0]))
    return None if target is None else CalibrationError(*target, count=0)


def group_errors(comparisons: Iterable[Comparison]) -> list[Group]:
    """Median and 90% quantile of the absolute relative error for each group of shapes."""
    found: dict[tuple[str, bool], list[Comparison]] = {}
    for one in comparisons:
        found.setdefault(group_key(one.shape.phase, one.shape.batch), []).append(one)
    return [_group(found[key]) for key in sorted(found)]


def rank_orders(comparisons: Iterable[Comparison]) -> list[RankOrder]:
    """The rank order at every context that at least two models were decoded at."""
    by_context: dict[int, list[Comparison]] = {}
    for one in comparisons:
        if one.shape.phase == "decode" and one.shape.batch == 1:
            by_context.setdefault(one.shape.context, []).append(one)
    return [_order(by_context[key]) for key in sorted(by_context) if len(by_context[key]) > 1]


def kendall_tau(x: ArrayLike, y: ArrayLike) -> float | None:
    """Kendall's tau-b of two sequences: 1 for the same order, -1 for the reverse, ties counted
    out; None where one of them is constant."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (x, y))
    upper = np.triu_indices(len(first), k=1)
    a, b = (np.sign(values[:, None] - values[None, :])[upper] for values in (first, second))
    pairs = np.sqrt(float(np.count_nonzero(a)) * float(np.count_nonzero(b)))
    return float((a * b).sum() / pairs) if pairs else None


def largest_band(values: Sequence[float], share: float = BAND) -> list[int]:
    """Indices, in ascending order of value, of the most values within `share` of one centre."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    widest: list[int] = []
    for begin, first in enumerate(order):
        limit = values[first] * (1 + share) / (1 - share)
        inside = [index for index in order[begin:] if values[index] <= limit]
        widest = inside if len(inside) > len(widest) else widest
    return widest


def _group(alike: list[Comparison]) -> Group:
    errors = [abs(one.error) for one in alike]
    median, p90 = (float(value) for value in np.quantile(errors, (0.5, 0.9)))
    return Group(
        phase=alike[0].shape.phase,
        batches=tuple(sorted({one.shape.batch for one in alike})),
        contexts=tuple(sorted({one.shape.context for one in alike})),
        error=CalibrationError(median, p90, len(errors)),
    )


def _order(alike: list[Comparison]) -> RankOrder:
    predicted = np.array([one.predicted_us for one in alike])
    measured = np.array([one.measured_us for one in alike])
    band = largest_band(measured.tolist())
    return RankOrder(
        context=alike[0].shape.context,
        count=len(alike),
        tau=kendall_tau(predicted, measured),
        band_us=float((measured[band].min() + measured[band].max()) / 2),
        band=tuple(alike[index].name for index in band),
        band_tau=kendall_tau(predicted[band], measured[band]),
    )
