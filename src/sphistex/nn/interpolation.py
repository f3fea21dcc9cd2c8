"""What the spots alone say of the places between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sphistex.metrics.baselines import linear_weights
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
        self._density = np.asarray(density, np.float32)
        self._mean = np.asarray(density, float).mean(0)
        self._smooth = SmoothResiduals.fit(xy_um, density - self._mean, seed=seed)
        # half of what is drawn is linear where a gene varies, and nothing where it may as well be noise
        self._linear_share = np.where(self._smooth.evidence > _CLEARLY, np.float32(0.5), np.float32(0))
        self._weights = linear_weights(xy_um)

    def __call__(self, xy_um: NDArray) -> NDArray[np.float64]:
        """Counts per superpixel at places (n, 2) in µm → (n, n_genes)."""
        return self._mixed(self._smooth(xy_um), xy_um, slice(None))

    def on_lattice(
        self, rows: slice, columns: slice, pitch_um: float, inside: NDArray[np.bool_], genes: slice
    ) -> NDArray[np.float32]:
        """The same for the superpixels of a block that are ``inside`` (n_rows, n_columns), (n_inside, n_genes).

        The smooth part as in :meth:`sphistex.nn.residuals.SmoothResiduals.on_lattice`.
        """
        row, column = np.nonzero(inside)
        places = (np.column_stack([column + columns.start, row + rows.start]) + 0.5) * pitch_um
        return self._mixed(self._smooth.on_lattice(rows, columns, pitch_um, genes)[inside], places, genes)

    def _mixed(self, smooth: NDArray, xy_um: NDArray, genes: slice) -> NDArray:
        smooth = np.maximum(smooth + self._mean[genes].astype(smooth.dtype), 0)
        weights = self._weights(xy_um).astype(np.float32)
        return smooth + self._linear_share[genes] * (weights @ self._density[:, genes] - smooth)
