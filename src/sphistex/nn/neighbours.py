"""The spots around a bag, as the tokens that its superpixels attend to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree

# Enhanced positions that the four spots around a square have gone into: the most that any bag has to be spared.
_MOST_HELD_OUT = 25


@dataclass(frozen=True)
class Neighbours:
    """Positions with expression, of which every bag sees the ``k`` nearest.

    Parameters
    ----------
    xy_um
        Positions (n, 2): measured or enhanced spots.
    tokens
        Their expression (n, d).
    origin
        Sparse (n, n_spots), non-zero where a measured spot went into a position.
    k
        Neighbours of a bag.
    pitch_um
        Spot pitch; with it tokens get their place relative to the bag. None leaves them without, as in the paper.
    """

    xy_um: NDArray[np.float64]
    tokens: NDArray[np.float32]
    origin: sparse.csr_matrix
    k: int
    pitch_um: float | None

    @property
    def dim(self) -> int:
        """Length of a token."""
        return self.tokens.shape[1] + (0 if self.pitch_um is None else 4)

    def around(
        self, centres_um: NDArray[np.floating], own: sparse.spmatrix | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Tokens of the nearest neighbours of each bag.

        Parameters
        ----------
        centres_um
            Centres of the bags (n_bags, 2).
        own
            Sparse (n_bags, n_spots), non-zero where a measured spot went into a bag. Every position made from such a
            spot is held out, so that a bag is never given its own answer. None holds nothing out.

        Returns
        -------
        Tokens (n_bags, k, dim) and which of them exist (n_bags, k).
        """
        wanted = min(self.k + (0 if own is None else _MOST_HELD_OUT), len(self.xy_um))
        _, index = KDTree(self.xy_um).query(centres_um, k=wanted)
        index = np.asarray(index).reshape(len(centres_um), wanted)
        allowed = np.ones(index.shape, dtype=bool)
        if own is not None:
            related = sparse.csr_matrix(self.origin @ own.T)
            allowed = np.asarray(related[index.ravel(), np.repeat(np.arange(len(index)), wanted)] == 0)
            allowed = allowed.reshape(index.shape)
        nearest = np.argsort(~allowed, axis=1, kind="stable")[:, : self.k]
        index, allowed = (np.take_along_axis(x, nearest, axis=1) for x in (index, allowed))
        tokens = self.tokens[index]
        if self.pitch_um is not None:
            offset = (self.xy_um[index] - centres_um[:, None]) / self.pitch_um
            tokens = np.concatenate([tokens, _place(offset)], axis=-1)
        return tokens * allowed[..., None], allowed


def _place(offset: NDArray[np.float64]) -> NDArray[np.float32]:
    """Where neighbours lie, in pitches (..., 2): offset, distance, and its exponential (..., 4)."""
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    return np.concatenate([offset, distance, np.exp(-distance)], axis=-1).astype(np.float32)
