"""Gaussian-process interpolation that knows that a spot is the mean over a disk (area-to-point kriging).

Kyriakidis (2004), Geographical Analysis 36(3), 259–289.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel

from sphistex.bench.problem import Problem

LENGTHS_UM = (60.0, 120.0, 240.0, 480.0)
SIGNAL_TO_NOISE = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Beyond this many lengths an exponential covariance is nothing; up to there it is tabulated at steps of a length.
_REACH, _STEP = 12.0, 0.02
_POINTS_OF_DISK = 100
_PLACES_AT_ONCE = 8192


class DiskExponential(Kernel):
    """Covariance of the means over disks of a field whose points have covariance exp(-distance / length).

    Inputs are (n, 3): x, y and radius of a disk; a disk of radius 0 is a point.

    Parameters
    ----------
    length_um
        Length scale in the unit of the inputs.

    Examples
    --------
    >>> point, disk = np.array([[0.0, 0.0, 0.0]]), np.array([[0.0, 0.0, 27.5]])
    >>> kernel = DiskExponential(60.0)
    >>> [round(float(kernel(a, b)[0, 0]), 2) for a, b in ((point, point), (point, disk), (disk, disk))]
    [1.0, 0.74, 0.67]
    """

    def __init__(self, length_um: float = 100.0) -> None:
        self.length_um = length_um

    def __call__(
        self, X: NDArray[np.float64], Y: NDArray[np.float64] | None = None, eval_gradient: bool = False
    ) -> NDArray[np.float64]:
        """Covariances (n, m); there is no gradient, as the length is not optimised."""
        if eval_gradient:
            raise ValueError("eval_gradient=True: this covariance has no gradient; pass optimizer=None.")
        Y = X if Y is None else Y
        out = cdist(X[:, :2], Y[:, :2])
        for a in np.unique(X[:, 2]):
            for b in np.unique(Y[:, 2]):
                pair = np.ix_(X[:, 2] == a, Y[:, 2] == b)
                out[pair] = np.interp(out[pair], *_table(self.length_um, min(a, b), max(a, b)), right=0.0)
        return out

    def diag(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Variances (n,)."""
        radii, which = np.unique(X[:, 2], return_inverse=True)
        return np.array([_table(self.length_um, radius, radius)[1][0] for radius in radii])[which]

    def is_stationary(self) -> bool:
        """Not in the inputs, of which one is the radius."""
        return False


def kriging(problem: Problem) -> NDArray[np.float32]:
    """Interpolate every gene with the length scale and the noise that its marginal likelihood prefers.

    A gene whose spots are best explained as noise gets its mean.
    """
    spots = np.column_stack([problem.spots.xy_um, np.full(len(problem.density), np.median(problem.spots.radius_um))])
    mean = problem.density.mean(0)
    length_um, coefficients = _fit(spots, problem.density - mean)
    out = np.zeros((len(problem.places_um), len(mean)), dtype=np.float32)
    for first in range(0, len(out), _PLACES_AT_ONCE):
        part = slice(first, first + _PLACES_AT_ONCE)
        points = np.column_stack([problem.places_um[part], np.zeros(len(out[part]))])
        for length in np.unique(length_um):
            genes = length_um == length
            out[part, genes] = DiskExponential(length)(spots, points).T @ coefficients[:, genes]
    return np.maximum(out + mean, 0).astype(np.float32)


def _fit(spots: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Length scale of each gene (n_genes,) and kernel coefficients (n_spots, n_genes), zero for noise alone."""
    best = -0.5 * len(values) * np.log(_positive((values**2).mean(0)))
    length_um, coefficients = np.full(len(best), LENGTHS_UM[0]), np.zeros(values.shape)
    for length in LENGTHS_UM:
        for ratio in SIGNAL_TO_NOISE:
            process = GaussianProcessRegressor(ratio * DiskExponential(length), alpha=1.0, optimizer=None)
            process.fit(spots, values)
            likelihood = _log_marginal_likelihood(process, values)
            better = likelihood > best
            best[better], length_um[better] = likelihood[better], length
            coefficients[:, better] = ratio * process.alpha_[:, better]
    return length_um, coefficients


def _log_marginal_likelihood(process: GaussianProcessRegressor, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each gene (n_genes,), with its variance at the likeliest value, less what all choices share."""
    variance = _positive((values * process.alpha_).mean(0))
    return -0.5 * len(values) * np.log(variance) - np.log(np.diag(process.L_)).sum()


def _positive(variance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(variance, 1e-300)


@lru_cache
def _table(length_um: float, a_um: float, b_um: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances between the centres of disks of radii a and b, and the covariance of their means."""
    offsets = (_disk(a_um)[:, None] - _disk(b_um)).reshape(-1, 2)
    distances = np.arange(0, _REACH, _STEP) * length_um
    along = [np.hypot(offsets[:, 0] + distance, offsets[:, 1]) for distance in distances]
    return distances, np.array([np.exp(-distance / length_um).mean() for distance in along])


def _disk(radius_um: float) -> NDArray[np.float64]:
    """Points of equal weight in a disk (n, 2), on a sunflower's spiral; its centre alone where the radius is 0."""
    if not radius_um:
        return np.zeros((1, 2))
    step = np.arange(_POINTS_OF_DISK)
    angle = np.pi * (3 - np.sqrt(5)) * step
    return radius_um * np.sqrt((step + 0.5) / _POINTS_OF_DISK)[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
