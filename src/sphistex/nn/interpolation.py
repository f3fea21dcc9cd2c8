"""What the spots alone say of the places between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sphistex.metrics.baselines import linear_interpolator
from sphistex.nn.residuals import SmoothResiduals

# By how many nats a gene's spots must be likelier to vary smoothly than to be noise, as noise is in 2 % of genes.
_CLEARLY = 3.0


class Interpolation:
    """The mean of linear interpolation, which keeps the spots' peaks, and smoothing, which averages their noise.

    Each is ahead of the other on some sections, and their mean is behind neither by much. A gene whose spots
    may as well be noise is smoothed alone: linear interpolation would draw the noise.

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
        self._smooth = SmoothResiduals.fit(xy_um, density - self._mean, seed=seed)
        self._varies = self._smooth.evidence > _CLEARLY
        self._linear = linear_interpolator(xy_um, density[:, self._varies])

    def __call__(self, xy_um: NDArray) -> NDArray[np.float64]:
        """Counts per superpixel at places (n, 2) in µm → (n, n_genes)."""
        out = np.maximum(self._smooth(xy_um) + self._mean, 0)
        out[:, self._varies] = (out[:, self._varies] + self._linear(xy_um)) / 2
        return out
