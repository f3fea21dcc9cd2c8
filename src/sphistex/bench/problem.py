"""What every method of a benchmark is given: the same spots, features and genes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sphistex.bags import Bags
from sphistex.nn import FeatureMap, Spots


@dataclass(frozen=True)
class Problem:
    """Spots of a section and the features of its superpixels, from which expression is to be predicted.

    Parameters
    ----------
    features
        Features of the superpixels with their surroundings, and the tissue mask.
    bags
        The spots as bags of tissue superpixels.
    spots
        The same spots with their counts of ``genes``.
    genes
        What is to be predicted.
    seed, device
        Of what is random, and where to compute.
    """

    features: FeatureMap
    bags: Bags
    spots: Spots
    genes: list[str]
    seed: int = 0
    device: str = "cpu"

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The tissue (rows, columns)."""
        return self.features.mask

    @cached_property
    def places_um(self) -> NDArray[np.float64]:
        """Centres of the tissue superpixels (n_superpixels, 2) in µm, x first, row by row."""
        return np.asarray((np.argwhere(self.mask)[:, ::-1] + 0.5) * self.bags.grid.pitch_um, dtype=np.float64)

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """Counts of the spots per superpixel of their area (n_spots, n_genes)."""
        return np.asarray(self.spots.counts / np.asarray(self.bags.weights.sum(1)), dtype=np.float64)


# Counts per superpixel of the tissue (n_superpixels, n_genes), row by row.
Method: TypeAlias = Callable[[Problem], NDArray[np.float32]]
