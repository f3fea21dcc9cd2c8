"""Array coordinates, as on Visium slides: of spots that lie on a lattice, and of a lattice laid over tissue."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Kind = Literal["hexagonal", "square"]

# From one ring around the middle to the next, while the lattice is fitted; and by how many pitches a spot may be off.
_GROWTH, _MAX_OFF = 1.5, 0.35
_BOND = 1.2


def array_coordinates(xy: NDArray[np.float64], pitch: float, kind: Kind) -> NDArray[np.int64]:
    """Row and column of spots (n, 2), from 0, also where the array lies rotated on the image.

    Of a hexagonal lattice row and column are both even or both odd, and neighbours in a row are two columns apart.

    Parameters
    ----------
    xy
        Centres (n, 2), x first.
    pitch
        Distance between neighbours, in the same unit.
    kind
        Which lattice.

    Raises
    ------
    ValueError
        If spots lie on no such lattice, or two at the same place of it.

    Examples
    --------
    >>> array_coordinates(np.array([[0, 0], [1, 0], [0.5, 0.866]]), 1.0, "hexagonal").tolist()
    [[0, 0], [0, 2], [1, 1]]
    """
    steps = _steps(xy, pitch, kind)
    middle = xy[np.argmin(np.linalg.norm(xy - np.median(xy, axis=0), axis=1))]
    apart = np.linalg.norm(xy - middle, axis=1)
    # printed arrays are a little off, which adds up: the lattice is fitted from the middle outwards
    origin, reach = middle, 4 * pitch
    while True:
        place = np.round((xy - origin) @ np.linalg.inv(steps))
        near = apart <= reach
        if near.sum() >= 3 and np.linalg.matrix_rank(place[near] - place[near].mean(0)) == 2:
            known = np.column_stack([place[near], np.ones(near.sum())])
            fitted = np.linalg.lstsq(known, xy[near], rcond=None)[0]
            steps, origin = fitted[:2], fitted[2]
        if near.all():
            break
        reach *= _GROWTH
    place = np.round((xy - origin) @ np.linalg.inv(steps)).astype(np.int64)
    off = np.linalg.norm(place @ steps + origin - xy, axis=1) / pitch
    if (off > _MAX_OFF).any() or len(np.unique(place, axis=0)) < len(place):
        raise ValueError(
            f"the spots lie on no {kind} lattice: {int((off > _MAX_OFF).sum())} of {len(xy)} are more than "
            f"{_MAX_OFF:g} pitches from their places on it, or share a place"
        )
    column, row = place.T
    if kind == "square":
        return np.stack([row - row.min(), column - column.min()], axis=1)
    return _from_zero(row, 2 * column + row)


def lattice_over(box: tuple[float, float, float, float], pitch: float, kind: Kind) -> tuple[NDArray, NDArray[np.int64]]:
    """Places of a lattice (n, 2), x first, in a box (left, top, right, bottom), centred; and their rows and columns."""
    left, top, right, bottom = box
    row_step, column_step = (pitch * 3**0.5 / 2, pitch / 2) if kind == "hexagonal" else (pitch, pitch)
    n_rows, n_columns = max(1, int((bottom - top) // row_step)), max(1, int((right - left) // column_step))
    array = np.argwhere(np.ones((n_rows, n_columns), dtype=bool))
    if kind == "hexagonal":
        array = array[array.sum(1) % 2 == 0]
    corner = np.array([top + bottom - (n_rows - 1) * row_step, left + right - (n_columns - 1) * column_step]) / 2
    return (corner + array * [row_step, column_step])[:, ::-1], array


def _steps(xy: NDArray[np.float64], pitch: float, kind: Kind) -> NDArray[np.float64]:
    """From a spot to the next in its row, and to the next row: (2, 2), the first as close to the x axis as can be."""
    pairs = KDTree(xy).query_pairs(_BOND * pitch, output_type="ndarray")
    fold = 6 if kind == "hexagonal" else 4
    if not len(pairs):
        raise ValueError(f"the spots lie on no {kind} lattice: none has a neighbour at {pitch:.4g}")
    bonds = xy[pairs[:, 1]] - xy[pairs[:, 0]]
    angle = np.angle(np.exp(1j * fold * np.arctan2(bonds[:, 1], bonds[:, 0])).mean()) / fold
    turns = angle + np.array([0, 2 * np.pi / fold])
    return pitch * np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _from_zero(row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
    """Smallest coordinates that keep both even or both odd."""
    row, column = row - row.min(), column - column.min()
    return np.stack([row, column + (row[0] + column[0]) % 2], axis=1)
