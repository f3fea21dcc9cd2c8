"""The spots around a bag, as the tokens that its superpixels attend to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree


@dataclass(frozen=True)
class Positions:
    """Positions with expression, of which every bag sees the nearest.

    Parameters
    ----------
    xy_um
        Where they are (n, 2).
    sums
        Sparse (n, n_spots): the sum of which spots each position is.
    profiles
        Their expression (n, d).
    k
        Neighbours of a bag; all positions where there are fewer.
    pitch_um
        Distance between positions; with it tokens get their place. None leaves them without, as in the paper.
    """

    xy_um: NDArray[np.float64]
    sums: sparse.csr_matrix
    profiles: NDArray[np.float32]
    k: int
    pitch_um: float | None

    def nearest(self, centres_um: NDArray[np.floating]) -> Neighbours:
        """Those nearest to bags with ``centres_um`` (n_bags, 2)."""
        k = min(self.k, len(self.xy_um))
        index = np.zeros((len(centres_um), k), dtype=np.intp)
        if k:
            index[:] = np.asarray(KDTree(self.xy_um).query(centres_um, k=k)[1]).reshape(index.shape)
        if self.pitch_um is None:
            return Neighbours(index, np.zeros((*index.shape, 0), dtype=np.float32))
        return Neighbours(index, _place((self.xy_um[index] - centres_um[:, None]) / self.pitch_um))

    def around(self, centres_um: NDArray[np.floating]) -> NDArray[np.float32]:
        """Tokens (n_bags, k, d + 4 or d) that bags with ``centres_um`` (n_bags, 2) see."""
        return self.nearest(centres_um).tokens(self.profiles)


@dataclass(frozen=True)
class Neighbours:
    """The nearest positions of every bag.

    Parameters
    ----------
    index
        Which positions (n_bags, k), the nearest first.
    place
        Where they lie relative to the bag (n_bags, k, 4), or nothing (n_bags, k, 0).
    """

    index: NDArray[np.intp]
    place: NDArray[np.float32]

    def tokens(self, profiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Tokens (n_bags, k, d + 4 or d) where the positions' expression is ``profiles`` (n, d)."""
        return np.concatenate([profiles[self.index], self.place], axis=-1)


def _place(offset: NDArray[np.floating]) -> NDArray[np.float32]:
    """Where neighbours lie, in pitches (..., 2): offset, distance, and its exponential (..., 4)."""
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    return np.concatenate([offset, distance, np.exp(-distance)], axis=-1).astype(np.float32)
