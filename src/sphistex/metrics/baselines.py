"""The two baselines that every super-resolved map has to beat: the nearest spot, and linear interpolation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator


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
    return linear_interpolator(xy, values)(places)


def linear_interpolator(xy: ArrayLike, values: ArrayLike) -> Callable[[ArrayLike], NDArray[np.float64]]:
    """:func:`linear` as a function of the places alone: the triangles are made once for many blocks of places."""
    within, beyond = (
        kind(np.asarray(xy, float), np.asarray(values, float)) for kind in (LinearNDInterpolator, NearestNDInterpolator)
    )

    def interpolate(places: ArrayLike) -> NDArray[np.float64]:
        inside = within(np.asarray(places, float))
        lost = np.isnan(inside).any(1)
        inside[lost] = beyond(np.asarray(places, float)[lost])
        return inside

    return interpolate
