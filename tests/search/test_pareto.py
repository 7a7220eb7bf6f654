from __future__ import annotations

import numpy as np
import pytest

from archsearch.search.pareto import hypervolume
from archsearch.search.pareto import non_dominated


def test_front_of_a_small_example() -> None:
    values = [[1, 5], [2, 3], [3, 3], [4, 1], [5, 5]]
    assert non_dominated(values).tolist() == [True, True, False, True, False]


def test_equal_points_both_stay() -> None:
    assert non_dominated([[1, 2], [1, 2], [2, 2]]).tolist() == [True, True, False]


def test_front_matches_the_definition() -> None:
    points = np.random.default_rng(0).integers(0, 6, size=(60, 3))
    kept = non_dominated(points)
    for i, point in enumerate(points):
        beaten = any((other <= point).all() and (other < point).any() for other in points)
        assert kept[i] != beaten


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        non_dominated([[1, np.nan]])
    with pytest.raises(ValueError, match="shape"):
        non_dominated([1, 2])


def test_hypervolume_of_a_staircase() -> None:
    assert hypervolume([[1, 3], [2, 1]], (4, 4)) == pytest.approx(3 * 1 + 2 * 2)
    assert hypervolume([[1, 3], [2, 1], [3, 3], [5, 0]], (4, 4)) == pytest.approx(7)
    assert hypervolume([], (4, 4)) == 0.0
