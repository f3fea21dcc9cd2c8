"""One section as plain arrays: what a model is fitted to, and predicts from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sphistex.bags import Bags
from sphistex.nn.context import FeatureMap
from sphistex.nn.pooling import mean_of, pooling

# Bins closer than this are pooled into larger bags.
_SMALLEST_BAG_UM = 16.0


@dataclass(frozen=True)
class Spots:
    """Measured spots of a section.

    Parameters
    ----------
    xy_um
        Centres (n_spots, 2) in µm from the image's top-left corner, x first.
    radius_um
        Radii (n_spots,).
    pitch_um
        Distance between neighbours.
    counts
        Raw counts (n_spots, n_genes).
    """

    xy_um: NDArray[np.float64]
    radius_um: NDArray[np.float64]
    pitch_um: float
    counts: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.xy_um)


@dataclass(frozen=True)
class Inputs:
    """A section: features of its superpixels, and its spots, which may be none where there is only an image.

    Parameters
    ----------
    features
        Feature map of the whole section.
    bags
        The spots as bags of tissue superpixels.
    spots
        The same spots with their counts.
    """

    features: FeatureMap
    bags: Bags
    spots: Spots

    @cached_property
    def pooled(self) -> Inputs:
        """The same with bins that are much smaller than spots pooled.

        A bag of a single bin would cost as much as a spot, and hold next to no counts.
        """
        spots = self.spots
        if spots.pitch_um >= _SMALLEST_BAG_UM or not len(spots):
            return self
        pool, pitch_um = pooling(spots.xy_um, spots.pitch_um, at_least_um=_SMALLEST_BAG_UM, at_most=None)
        counts = np.asarray(pool @ spots.counts, dtype=np.float32)
        pooled = Spots(mean_of(pool) @ spots.xy_um, np.sqrt(pool @ spots.radius_um**2), pitch_um, counts)
        return Inputs(self.features, Bags(sparse.csr_matrix(pool @ self.bags.weights), self.bags.grid), pooled)

    @cached_property
    def identity(self) -> str:
        """What tells a section from others: a hash of where its spots lie, to the µm, and of their counts."""
        found = hashlib.blake2b(np.rint(self.spots.xy_um).astype(np.int64).tobytes(), digest_size=8)
        found.update(np.ascontiguousarray(self.spots.counts).data)
        return found.hexdigest()
