"""The two baselines that every super-resolved map has to beat: the nearest spot, and linear interpolation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.interpolate import NearestNDInterpolator
from scipy.spatial import Delaunay, KDTree


def nearest(xy: ArrayLike, values: ArrayLike, places: ArrayLike) -> NDArray[np.float64]:
    """Value of the nearest spot.

    Parameters
    ----------
    xy
        Spot centres (n_spots, 2).
    values
        What was measured there, (n_spots, n_genes).
    places
        Where it is wanted, (n_places, 2), in the unit of ``xy``.

    Returns
    -------
    (n_places, n_genes).

    Examples
    --------
    >>> nearest([[0, 0], [10, 0]], [[1.0], [5.0]], [[2, 1], [9, 1]]).ravel().tolist()
    [1.0, 5.0]
    """
    return NearestNDInterpolator(np.asarray(xy, float), np.asarray(values, float))(np.asarray(places, float))


def linear(xy: ArrayLike, values: ArrayLike, places: ArrayLike) -> NDArray[np.float64]:
    """Linear interpolation over the triangles between spots; outside all triangles, the nearest spot.

    Parameters
    ----------
    xy, values, places
        As in :func:`nearest`; at least three spots that are not on one line.

    Returns
    -------
    (n_places, n_genes).

    Examples
    --------
    >>> corners, heights = [[0, 0], [10, 0], [0, 10], [10, 10]], [[0.0], [10.0], [0.0], [10.0]]
    >>> linear(corners, heights, [[3, 5], [20, 0]]).round(6).ravel().tolist()
    [3.0, 10.0]
    """
    return linear_weights(xy)(places) @ np.asarray(values, float)


def linear_weights(xy: ArrayLike) -> Callable[[ArrayLike], sparse.csr_matrix]:
    """:func:`linear` without the values: a function from places to a sparse (n_places, n_spots).

    The triangles are made once, for many blocks of places and many genes.
    """
    xy = np.asarray(xy, float)
    triangles, spots = Delaunay(xy), KDTree(xy)
    # made here and not at first use: threads that ask for it at once free each other's (scipy/scipy#23854)
    transform = triangles.transform

    def weights(places: ArrayLike) -> sparse.csr_matrix:
        places = np.asarray(places, float)
        found = triangles.find_simplex(places)
        corners = triangles.simplices[found]
        affine = transform[found]
        two = np.einsum("nij,nj->ni", affine[:, :2], places - affine[:, 2])
        share = np.column_stack([two, 1 - two.sum(1)])
        lost = (found < 0) | np.isnan(share).any(1)
        corners[lost] = spots.query(places[lost])[1][:, None]
        share[lost] = [1.0, 0.0, 0.0]
        starts = np.arange(len(places) + 1) * 3
        return sparse.csr_matrix((share.ravel(), corners.ravel(), starts), shape=(len(places), len(xy)))

    return weights
