"""Models of one pattern, as fast as the winner: what the search has to beat."""

from __future__ import annotations

from archsearch.operators import get
from archsearch.search.config import RunConfig
from archsearch.search.screen import Candidate
from archsearch.search.screen import Screen
from archsearch.space import parse

# how much slower than the winner a baseline may be
SLOWEST = 1.02
# what a pattern without the winner's cheap layers may lack in depth before it loses width
DEPTH = 2 / 3
WIDTH_STEP = 64


def match(
    unit: str, winner: Candidate, screen: Screen, config: RunConfig, *, latency_us: float
) -> Candidate:
    """Repeat `unit` ("a f") into a model of a predicted latency, the winner's.

    It gets the largest width (of the run's, and multiples of 64 between them) at which it can
    be two thirds as deep as the winner, and then as many repeats as the latency allows; where
    it can be that deep at no width, the deepest one. Raises ValueError where none is fast enough.
    """
    limit = SLOWEST * latency_us
    enough = DEPTH * len(winner.spec.layers)
    reason = "one repeat is slower at every width"
    deepest: Candidate | None = None
    for width in _widths(config):
        try:
            candidate = _fill(unit, width, limit, screen, config)
        except ValueError as error:
            # a width that the heads do not divide, or that the table does not cover
            reason = str(error)
            continue
        if candidate is None:
            continue
        if len(candidate.spec.layers) >= enough:
            return candidate
        if deepest is None or len(candidate.spec.layers) > len(deepest.spec.layers):
            deepest = candidate
    if deepest is None:
        at = f"{latency_us / 1000:.4g} ms per token"
        raise ValueError(f"no baseline ({unit}) at {at}: {reason}")
    return deepest


def label(unit: str) -> str:
    """Titles of the operators of a unit: "Attention + FFN"."""
    return " + ".join(get(code).title for code in unit.split())


def _fill(
    unit: str, width: int, limit: float, screen: Screen, config: RunConfig
) -> Candidate | None:
    """The deepest model of `unit` within `limit` µs, at most twice as deep as a candidate."""
    found = None
    for repeats in range(1, max(1, 2 * config.max_layers // len(unit.split())) + 1):
        candidate = screen.judge(parse(f"({unit})x{repeats} @{width}", **config.fields))
        if candidate.costs.latency_us > limit:
            break
        found = candidate
    return found


def _widths(config: RunConfig) -> list[int]:
    between = range(min(config.widths), max(config.widths) + 1, WIDTH_STEP)
    return sorted({*between, *config.widths}, reverse=True)
