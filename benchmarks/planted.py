"""A section of plain arrays with a relation between image and expression to be learnt, of any size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sphistex.bags import Bags
from sphistex.grid import Grid
from sphistex.nn import Spots

PITCH, SIDE, LATENT = 12, 7, 16


@dataclass(frozen=True)
class Planted:
    """Square bags of 7 x 7 superpixels, 12 superpixels apart, on a square lattice.

    ``features`` (dim, rows, columns) are linear in hidden fields, as are the logarithms of the genes' rates; half of
    the features' variance is noise. ``counts`` are Poisson.
    """

    features: NDArray[np.float16]
    bags: Bags
    spots: Spots

    @property
    def mask(self) -> NDArray[np.bool_]:
        return np.ones(self.features.shape[1:], dtype=bool)

    @property
    def genes(self) -> list[str]:
        return [f"g{i}" for i in range(self.spots.counts.shape[1])]

    def take(self, chosen: NDArray) -> tuple[Bags, Spots]:
        """Some of the spots."""
        spots = self.spots
        return self.bags.take(chosen), Spots(
            spots.xy_um[chosen], spots.radius_um[chosen], spots.pitch_um, spots.counts[chosen]
        )


def planted(spots_per_side: int, n_features: int, n_genes: int, seed: int = 0) -> Planted:
    rng = np.random.default_rng(seed)
    side = spots_per_side * PITCH
    fields = _smooth(rng.normal(size=(LATENT, side, side)), 1.5) + _smooth(rng.normal(size=(LATENT, side, side)), 12)
    loadings = rng.normal(size=(n_features, LATENT)) / np.sqrt(LATENT)
    features = np.empty((n_features, side, side), dtype=np.float16)
    for row in range(0, side, PITCH):
        part = np.s_[:, row : row + PITCH]
        clean = np.tensordot(loadings, fields[part], 1)
        features[part] = clean + np.sqrt(2) * rng.normal(size=clean.shape)
    effects = 0.5 * rng.normal(size=(LATENT, n_genes)) / np.sqrt(2)
    level = rng.gamma(0.5, 0.2, n_genes) + 0.01
    corner = np.indices((spots_per_side, spots_per_side)).reshape(2, -1).T * PITCH + (PITCH - SIDE) // 2
    members = (corner[:, None] + np.indices((SIDE, SIDE)).reshape(2, -1).T[None]).reshape(-1, 2)
    index = members[:, 0] * side + members[:, 1]
    weights = sparse.csr_matrix(
        (np.ones(len(index)), (np.repeat(np.arange(len(corner)), SIDE**2), index)), shape=(len(corner), side**2)
    )
    counts = np.empty((len(corner), n_genes), dtype=np.float32)
    for first in range(0, len(corner), 256):
        part = members[first * SIDE**2 : (first + 256) * SIDE**2]
        rates = level * np.exp(fields[:, part[:, 0], part[:, 1]].T @ effects)
        counts[first : first + 256] = rng.poisson(rates.reshape(-1, SIDE**2, n_genes).sum(1))
    grid = Grid((side, side), mpp=0.5)
    xy_um = (corner[:, ::-1] + SIDE / 2) * grid.pitch_um
    spots = Spots(xy_um, np.full(len(corner), 27.5), PITCH * grid.pitch_um, counts)
    return Planted(features, Bags(weights, grid), spots)


def _smooth(fields: NDArray, sigma: float) -> NDArray:
    from scipy.ndimage import gaussian_filter

    smooth = np.stack([gaussian_filter(field, sigma, mode="wrap") for field in fields])
    return smooth / smooth.std((1, 2), keepdims=True)
