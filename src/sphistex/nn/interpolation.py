"""What the spots alone say of the places between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sphistex.metrics.baselines import linear_interpolator
from sphistex.nn.residuals import SmoothResiduals


class Interpolation:
    """The mean of linear interpolation, which keeps the spots' peaks, and smoothing, which averages their noise.

    Each is ahead of the other on some sections, and their mean is behind neither by much.

    Parameters
    ----------
    xy_um
        Spot centres (n_spots, 2) in µm.
    density
        Counts per superpixel there (n_spots, n_genes).
    seed
        As in :meth:`sphistex.nn.residuals.SmoothResiduals.fit`.

    Examples
    --------
    >>> xy = np.random.default_rng(0).uniform(0, 2000, (300, 2))
    >>> field = 2 + np.sin(xy[:, :1] / 300)
    >>> bool(np.abs(Interpolation(xy, field)(xy) - field).mean() < 0.1)
    True
    """

    def __init__(self, xy_um: NDArray, density: NDArray, *, seed: int = 0) -> None:
        self._mean = np.asarray(density, float).mean(0)
        self._linear = linear_interpolator(xy_um, density)
        self._smooth = SmoothResiduals.fit(xy_um, density - self._mean, seed=seed)

    def __call__(self, xy_um: ArrayLike) -> NDArray[np.float64]:
        """Counts per superpixel at places (n, 2) in µm → (n, n_genes)."""
        smooth = np.maximum(self._smooth(np.asarray(xy_um)) + self._mean, 0)
        return (self._linear(xy_um) + smooth) / 2
