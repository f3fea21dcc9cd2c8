"""Linear enhancement of a spot lattice: new positions at the midpoints of lattice neighbours (HISTEX, eq. 1–2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.spatial import KDTree

# Distances between lattice neighbours and between the ends of a square's diagonal, in pitches. A hexagonal lattice
# has its next distance at 1.73 and so no diagonals; the margins leave room for printed spots that are a little off.
_NEIGHBOUR, _DIAGONAL = 1.2, 1.6
_SAME_PLACE = 0.25


def enhancement_matrix(xy: ArrayLike, pitch: float) -> sparse.csr_matrix:
    """Averages that turn spots into enhanced spots (eq. 1–2), on any hexagonal or square lattice.

    Every pair of lattice neighbours gives a spot at its midpoint, with the mean of the two; on a square lattice the
    four spots around a square also give its centre (the mean of two such means). Spots next to a missing one simply
    have fewer midpoints: nothing is interpolated over a gap.

    Parameters
    ----------
    xy
        Spot centres (n_spots, 2).
    pitch
        Distance between lattice neighbours, in the unit of ``xy``.

    Returns
    -------
    Sparse (n_enhanced, n_spots) with rows that add up to 1; the first n_spots rows are the measured spots.
    ``matrix @ xy`` are the enhanced positions, ``matrix @ counts`` the enhanced counts.

    Examples
    --------
    >>> import numpy as np
    >>> square = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], float)
    >>> matrix = enhancement_matrix(square, 1.0)
    >>> (matrix @ square)[4:].tolist()
    [[0.5, 0.0], [0.0, 0.5], [1.0, 0.5], [0.5, 1.0], [0.5, 0.5]]
    """
    xy = np.asarray(xy, dtype=float)
    pairs = KDTree(xy).query_pairs(_DIAGONAL * pitch, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    length = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1) / pitch
    edges, diagonals = pairs[length <= _NEIGHBOUR], pairs[length > _NEIGHBOUR]
    groups = [np.arange(len(xy))[:, None], edges, _crossing(diagonals, xy, pitch)]
    rows = [sparse.csr_matrix(_averages(group, len(xy))) for group in groups if len(group)]
    return sparse.csr_matrix(sparse.vstack(rows))


def _averages(groups: NDArray[np.int_], n_spots: int) -> sparse.coo_matrix:
    """Matrix whose row r averages the spots ``groups[r]``."""
    n, size = groups.shape
    rows = np.repeat(np.arange(n), size)
    return sparse.coo_matrix((np.full(n * size, 1 / size), (rows, groups.ravel())), shape=(n, n_spots))


def _crossing(diagonals: NDArray[np.int_], xy: NDArray[np.float64], pitch: float) -> NDArray[np.int_]:
    """Pairs of diagonals that cross in their middle, as (n, 4) spots around a square."""
    if not len(diagonals):
        return np.empty((0, 4), dtype=int)
    middles = xy[diagonals].mean(1)
    crossing = KDTree(middles).query_pairs(_SAME_PLACE * pitch, output_type="ndarray")
    return np.hstack([diagonals[crossing[:, 0]], diagonals[crossing[:, 1]]])
