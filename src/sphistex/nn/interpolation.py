"""What the spots alone say of the places between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from sphistex.metrics.baselines import linear_weights
from sphistex.nn.residuals import SmoothResiduals

# By how many nats a gene's spots must be likelier to vary smoothly than to be noise, as noise is in 2 % of genes.
_CLEARLY = 3.0


@dataclass(frozen=True)
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
    mean
        Their mean (n_genes,).
    smooth
        What is smoothed of the rest.
    linear_share
        How much of each gene is drawn linearly (n_genes,).

    Examples
    --------
    >>> xy = np.random.default_rng(0).uniform(0, 2000, (300, 2))
    >>> field = 2 + np.sin(xy[:, :1] / 300)
    >>> bool(np.abs(Interpolation.fit(xy, field)(xy) - field).mean() < 0.1)
    True
    """

    xy_um: NDArray[np.float64]
    density: NDArray[np.float32]
    mean: NDArray[np.float64]
    smooth: SmoothResiduals
    linear_share: NDArray[np.float32]

    @classmethod
    def fit(cls, xy_um: NDArray, density: NDArray, *, seed: int = 0) -> Interpolation:
        """Learn from what the spots have measured; ``seed`` as in :meth:`sphistex.nn.residuals.SmoothResiduals.fit`."""
        density = np.asarray(density, dtype=np.result_type(density, np.float32))
        mean = density.mean(0, dtype=np.float64)
        smooth = SmoothResiduals.fit(xy_um, density - mean.astype(density.dtype), seed=seed)
        # half of what is drawn is linear where a gene varies, and nothing where it may as well be noise
        share = np.where(smooth.evidence > _CLEARLY, np.float32(0.5), np.float32(0))
        return cls(np.asarray(xy_um, float), np.asarray(density, np.float32), mean, smooth, share)

    def take(self, genes: NDArray[np.intp]) -> Interpolation:
        """That of some genes."""
        return replace(
            self,
            density=self.density[:, genes],
            mean=self.mean[genes],
            smooth=self.smooth.take(genes),
            linear_share=self.linear_share[genes],
        )

    def __call__(self, xy_um: NDArray) -> NDArray[np.float64]:
        """Counts per superpixel at places (n, 2) in µm → (n, n_genes)."""
        return self._mixed(self.smooth(xy_um), xy_um, slice(None))

    def on_lattice(
        self, rows: slice, columns: slice, pitch_um: float, inside: NDArray[np.bool_], genes: slice
    ) -> NDArray[np.float32]:
        """The same for the superpixels of a block that are ``inside`` (n_rows, n_columns), (n_inside, n_genes).

        The smooth part as in :meth:`sphistex.nn.residuals.SmoothResiduals.on_lattice`.
        """
        row, column = np.nonzero(inside)
        places = (np.column_stack([column + columns.start, row + rows.start]) + 0.5) * pitch_um
        return self._mixed(self.smooth.on_lattice(rows, columns, pitch_um, genes)[inside], places, genes)

    @cached_property
    def _weights(self) -> Callable[[ArrayLike], sparse.csr_matrix]:
        return linear_weights(self.xy_um)

    def _mixed(self, smooth: NDArray, xy_um: NDArray, genes: slice) -> NDArray:
        smooth = np.maximum(smooth + self.mean[genes].astype(smooth.dtype), 0)
        weights = self._weights(xy_um).astype(np.float32)
        return smooth + self.linear_share[genes] * (weights @ self.density[:, genes] - smooth)
