"""Which candidates are not beaten, and by how much a set of them beats a reference point.

N candidates, M objectives, all minimised.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from numpy.typing import NDArray


def non_dominated(values: ArrayLike) -> NDArray[np.bool_]:
    """Mark the rows of values[N, M] that no other row beats; equal rows both stay. NaN raises."""
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(f"values must have the shape [N, M]; got {points.shape}")
    if np.isnan(points).any():
        raise ValueError("values must be numbers; got NaN")
    no_worse = (points[:, None, :] <= points[None, :, :]).all(axis=-1)
    better = (points[:, None, :] < points[None, :, :]).any(axis=-1)
    beaten = np.any(no_worse & better, axis=0)
    return np.logical_not(np.atleast_1d(beaten))


def hypervolume(points: ArrayLike, reference: tuple[float, float]) -> float:
    """Area that points[N, 2] dominate below `reference`; points beyond it add nothing."""
    inside = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    inside = inside[(inside < reference).all(axis=1)]
    area = 0.0
    ceiling = reference[1]
    for x, y in inside[np.lexsort((inside[:, 1], inside[:, 0]))]:
        if y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return float(area)
