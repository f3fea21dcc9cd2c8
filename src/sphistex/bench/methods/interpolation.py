"""What is known without an image: the mean of the spots, the nearest spot, and linear interpolation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sphistex.bench.problem import Problem
from sphistex.metrics import baselines


def constant(problem: Problem) -> NDArray[np.float32]:
    """Mean of the spots at every superpixel."""
    mean = problem.density.mean(0, dtype=np.float64).astype(np.float32)
    return np.tile(mean, (len(problem.places_um), 1))


def nearest(problem: Problem) -> NDArray[np.float32]:
    """The nearest spot."""
    return baselines.nearest(problem.spots.xy_um, problem.density, problem.places_um).astype(np.float32)


def linear(problem: Problem) -> NDArray[np.float32]:
    """Linear interpolation between the spots; outside them, the nearest."""
    return baselines.linear(problem.spots.xy_um, problem.density, problem.places_um).astype(np.float32)
