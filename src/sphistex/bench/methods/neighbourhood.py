"""Means of the nearest spots, where what looks alike is near: the image as a third coordinate.

The principle of TESLA (Hu et al. 2023, Cell Systems 14(5), 404–417), which has the colour where features are here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsRegressor

from sphistex.bench.methods._tissue import components
from sphistex.bench.problem import Problem

NEIGHBOURS = 10
# Spread of the third coordinate over that of the spots' places.
IMAGE_TO_SPACE = 1.0
# Spots are not taken to be nearer than this, so that none has all the weight.
_LEAST_UM = 1.0


def neighbourhood(problem: Problem) -> NDArray[np.float32]:
    """Mean of the nearest spots in x, y and the features' first principal component; weights fall with distance²."""
    spread = IMAGE_TO_SPACE * problem.spots.xy_um.std(0).max()
    z = spread * components(problem, 1)
    weights = problem.bags.weights[:, problem.mask.ravel()]
    z_of_spots = weights @ z / np.asarray(weights.sum(1))
    neighbours = KNeighborsRegressor(min(NEIGHBOURS, len(z_of_spots)), weights=_inverse_square)
    neighbours.fit(np.hstack([problem.spots.xy_um, z_of_spots]), problem.density)
    return neighbours.predict(np.hstack([problem.places_um, z])).astype(np.float32)


def _inverse_square(distance_um: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / np.maximum(distance_um, _LEAST_UM) ** 2
