"""Models of one pattern, as fast as the winner: what the search has to beat."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.operators import get
from archsearch.search.config import RunConfig
from archsearch.search.screen import Candidate
from archsearch.search.screen import Screen
from archsearch.space import parse

# a predicted latency within this range of the winner's counts as the same
SLOWEST, FASTEST = 1.02, 0.95
WIDTH_STEP = 64


def match(unit: str, winner: Candidate, screen: Screen, config: RunConfig) -> Candidate:
    """Repeat `unit` ("a f") into a model of the winner's predicted latency.

    Of the depths and widths (multiples of 64 within the run's) that come within 5 % below and
    2 % above it, the depth nearest to the winner's is taken, and its widest; where none does,
    the slowest that is not more than 2 % above. Raises ValueError where there is none.
    """
    nearest: Candidate | None = None
    limit = winner.costs.latency_us
    reason = f"every width of ({unit}) is slower than the winner"
    for repeats in _depths(unit, winner, config):
        try:
            candidate = _widest(unit, repeats, screen, config, limit)
        except ValueError as error:
            reason = str(error)
            continue
        if candidate is None:
            continue
        if candidate.costs.latency_us >= FASTEST * limit:
            return candidate
        if nearest is None or candidate.costs.latency_us > nearest.costs.latency_us:
            nearest = candidate
    if nearest is None:
        raise ValueError(f"no baseline ({unit}) at {limit / 1000:.4g} ms per token: {reason}")
    return nearest


def label(unit: str) -> str:
    """Titles of the operators of a unit: "Attention + FFN"."""
    return " + ".join(get(code).title for code in unit.split())


def _depths(unit: str, winner: Candidate, config: RunConfig) -> list[int]:
    size = len(unit.split())
    layers = len(winner.spec.layers)
    most = max(1, 2 * config.max_layers // size)
    return sorted(range(1, most + 1), key=lambda repeats: (abs(repeats * size - layers), repeats))


def _widest(
    unit: str, repeats: int, screen: Screen, config: RunConfig, limit: float
) -> Candidate | None:
    error: ValueError | None = None
    fitting = None
    for width in _widths(config):
        try:
            candidate = screen.judge(parse(f"({unit})x{repeats} @{width}", **config.fields))
        except ValueError as caught:
            # a width that the heads do not divide, or that the table does not cover
            error = caught
            continue
        if candidate.costs.latency_us <= SLOWEST * limit:
            return candidate
        fitting = candidate
    if fitting is None and error is not None:
        raise error
    return None


def _widths(config: RunConfig) -> Iterator[int]:
    inside = range(min(config.widths), max(config.widths) + 1, WIDTH_STEP)
    yield from sorted({*inside, *config.widths}, reverse=True)
