from __future__ import annotations

import math

import pytest

from archsearch.search.baselines import match
from archsearch.search.screen import Screen
from archsearch.space import parse


@pytest.fixture
def setting(config, evaluator):
    """A config, its screen, and a function from notation to a judged winner."""
    cfg = config(widths=(64, 128, 256))
    screen = Screen(cfg, cfg.make_space(), evaluator().costs)
    return cfg, screen, lambda text: screen.judge(parse(text, **cfg.fields))


def matched(unit, winner, screen, cfg):
    return match(unit, winner, screen, cfg, latency_us=winner.costs.latency_us)


@pytest.mark.parametrize("unit", ["a f", "w f", "w"])
@pytest.mark.parametrize("winner", ["(a f w)x3 @128", "wx4 @256", "(a w f f)x3 @64"])
def test_a_baseline_is_as_wide_and_then_as_deep_as_can_be(unit, winner, setting) -> None:
    cfg, screen, judge = setting
    best = judge(winner)
    found = matched(unit, best, screen, cfg)
    size, width = len(unit.split()), found.spec.hidden_size
    repeats = len(found.spec.layers) // size
    limit = 1.02 * best.costs.latency_us

    assert found.costs.latency_us <= limit
    enough = 2 / 3 * len(best.spec.layers)
    assert len(found.spec.layers) >= enough
    assert judge(f"({unit})x{repeats + 1} @{width}").costs.latency_us > limit
    if width < 256:
        deep_enough = math.ceil(enough / size)
        assert judge(f"({unit})x{deep_enough} @{width + 64}").costs.latency_us > limit


def test_widths_between_those_of_the_run_are_used(setting) -> None:
    cfg, screen, judge = setting
    assert matched("a f", judge("(a f)x2 @192"), screen, cfg).spec.hidden_size == 192


def test_a_pattern_that_cannot_be_as_deep_is_as_deep_as_it_can(setting) -> None:
    cfg, screen, judge = setting
    found = matched("a", judge("fx12 @64"), screen, cfg)
    assert (len(found.spec.layers), found.spec.hidden_size) == (3, 64)


def test_a_pattern_that_is_too_slow_is_an_error(setting) -> None:
    cfg, screen, judge = setting
    with pytest.raises(ValueError, match=r"no baseline \(a\) at 0.06 ms.*slower at every width"):
        matched("a", judge("f @64"), screen, cfg)
