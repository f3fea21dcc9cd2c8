"""Sections as plain arrays: planted ones of any size, and what the published loop takes of any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree
from torch import Tensor

from sphistex.bags import Bags
from sphistex.grid import Grid
from sphistex.nn import Spots

PITCH, SIDE, LATENT, NEIGHBOURS = 12, 7, 16, 6


@dataclass(frozen=True)
class Section:
    """Features (dim, rows, columns), where there is tissue (rows, columns), and the spots as bags and with counts."""

    features: NDArray[np.floating]
    mask: NDArray[np.bool_]
    bags: Bags
    spots: Spots

    @property
    def genes(self) -> list[str]:
        return [f"g{i}" for i in range(self.spots.counts.shape[1])]

    def take(self, chosen: NDArray) -> tuple[Bags, Spots]:
        """Some of the spots."""
        spots = self.spots
        return self.bags.take(chosen), Spots(
            spots.xy_um[chosen], spots.radius_um[chosen], spots.pitch_um, spots.counts[chosen]
        )


def planted(spots_per_side: int, n_features: int, n_genes: int, seed: int = 0) -> Section:
    """Square bags of 7 x 7 superpixels, 12 superpixels apart, on a square lattice.

    Features are linear in hidden fields, as are the logarithms of the genes' rates; half of the features' variance is
    noise. Counts are Poisson.
    """
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
    return Section(features, np.ones((side, side), dtype=bool), Bags(weights, grid), spots)


def as_published(
    section: Section, seen: NDArray, wanted: NDArray | None = None, *, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What the loop takes of the ``wanted`` spots, by default of those that are ``seen``.

    Superpixels (n, 49, n_features) of the square around each spot, scaled counts (n, 6, n_genes) of the nearest seen
    spots other than it, and its own (n, n_genes).
    """
    own = 1 if wanted is None else 0
    wanted = seen if wanted is None else wanted
    places, counts = section.spots.xy_um, section.spots.counts
    around = KDTree(places[seen]).query(places[wanted], k=NEIGHBOURS + own)[1][:, own:]
    corner = np.round(places[wanted, ::-1] / section.bags.grid.pitch_um - SIDE / 2).astype(int)
    corner = np.clip(corner, 0, np.array(section.mask.shape) - SIDE)
    rows, columns = (corner[..., None] + np.indices((SIDE, SIDE)).reshape(2, -1)).swapaxes(0, 1)
    superpixels = section.features[:, rows, columns].transpose(1, 2, 0).astype(np.float32)
    tokens, target = scaled(counts[seen], counts[seen])[around], scaled(counts[wanted], counts[seen])
    return tuple(torch.from_numpy(values).to(device) for values in (superpixels, tokens, target))  # type: ignore[return-value]


def scaled(counts: NDArray, of: NDArray) -> NDArray[np.float32]:
    """Counts between the least and the largest ``of`` the seen spots."""
    low, high = of.min(0), of.max(0)
    return ((counts - low) / np.maximum(high - low, 1e-8)).astype(np.float32)


def _smooth(fields: NDArray, sigma: float) -> NDArray:
    from scipy.ndimage import gaussian_filter

    smooth = np.stack([gaussian_filter(field, sigma, mode="wrap") for field in fields])
    return smooth / smooth.std((1, 2), keepdims=True)
