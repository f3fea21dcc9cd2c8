"""Capture areas much smaller than a spot, pooled into places that hold enough counts to be looked at on their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

# Places to be looked at on their own are at least this far apart; a Visium spot, 100 µm from the next, is one.
PLACE_UM = 50.0
# Pooling into larger squares until no more than this many are left bounds what is quadratic in their number.
MAX_PLACES = 4000
# Squares that hold fewer areas than this share of the usual number are left out: their noise is of another size.
_MIN_FILLED = 0.5


def pooling(
    xy_um: NDArray[np.float64], pitch_um: float, at_least_um: float = PLACE_UM, at_most: int | None = MAX_PLACES
) -> tuple[sparse.csr_matrix, float]:
    """Sums of neighbouring capture areas, such as the bins of Visium HD.

    Parameters
    ----------
    xy_um
        Centres of the areas (n_areas, 2) in µm.
    pitch_um
        Distance between neighbouring areas. Areas that are at least ``at_least_um`` apart are left as they are.
    at_least_um
        Distance between places; a little more where the pitch does not divide it.
    at_most
        Larger squares are taken until no more places than this are left; None sets no bound.

    Returns
    -------
    Sparse (n_places, n_areas) of ones where an area is part of a place, and the distance between places in µm.

    Examples
    --------
    >>> bins = np.stack(np.meshgrid(np.arange(20) * 8.0, np.arange(20) * 8.0), -1).reshape(-1, 2)
    >>> matrix, pitch_um = pooling(bins, 8.0)
    >>> matrix.shape, pitch_um
    ((9, 400), 56.0)
    """
    if pitch_um >= at_least_um:
        return sparse.identity(len(xy_um), format="csr"), pitch_um
    side = int(np.ceil(at_least_um / pitch_um))
    while True:
        square = np.floor((xy_um - xy_um.min(0)) / (side * pitch_um) + 1e-6).astype(np.int64)
        _, place, size = np.unique(square, axis=0, return_inverse=True, return_counts=True)
        filled = size >= _MIN_FILLED * np.median(size)
        if at_most is None or filled.sum() <= at_most:
            break
        side += 1
    row = np.cumsum(filled) - 1
    kept = filled[place.ravel()]
    entries = np.ones(int(kept.sum())), (row[place.ravel()[kept]], np.flatnonzero(kept))
    return sparse.csr_matrix(entries, shape=(int(filled.sum()), len(xy_um))), side * pitch_um


def mean_of(sums: sparse.csr_matrix) -> sparse.csr_matrix:
    """The matrix with rows that add up to 1."""
    return sparse.csr_matrix(sparse.diags(1 / np.asarray(sums.sum(1)).ravel()) @ sums)
