"""Methods without an image have closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import KDTree

from sphistex.bench.methods.interpolation import constant, nearest


def test_constant_is_the_mean_of_the_spots(section: Any) -> None:
    problem = section.problem
    mean = (problem.spots.counts / problem.bags.weights.sum(1).A1[:, None]).mean(0)
    np.testing.assert_allclose(constant(problem), np.broadcast_to(mean, (problem.mask.sum(), 2)), rtol=1e-6)


def test_where_a_spot_is_nearest_has_its_value(section: Any) -> None:
    problem = section.problem
    centre = KDTree(problem.places_um).query(problem.spots.xy_um)[1]
    area = np.asarray(problem.bags.weights.sum(1))
    np.testing.assert_allclose(nearest(problem)[centre], problem.spots.counts / area, rtol=1e-6)
