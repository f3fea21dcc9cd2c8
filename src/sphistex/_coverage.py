"""Exact area that polygons share with the unit squares of a lattice, from their edges alone.

Edges are cut at the lattice's lines. A piece that goes down by dy within a square adds dy times what lies to its right
to that square, and dy to all squares to the right of it, as fonts are drawn; no polygon is intersected with a square.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

# Corners of polygons, and squares of the rectangles around them, that are in memory at once.
_CORNERS, _SQUARES = 250_000, 4_000_000
# Less than this share of a square is rounding.
_ROUNDING = 1e-9
_POLYGON = 3


def polygon_overlaps(polygons: NDArray[np.object_], shape: tuple[int, int]) -> sparse.csr_matrix:
    """Area that valid polygons (n,) share with each square of a lattice (rows, columns), (n, rows * columns).

    Polygons are shapely geometries in units of the lattice. What is no polygon, or empty, shares nothing.
    """
    import shapely  # here, so that the computing core runs where there is none

    bounds = np.nan_to_num(shapely.bounds(polygons))
    beyond = (bounds[:, :2] < 0).any(1) | (bounds[:, 2:] > shape[::-1]).any(1)
    polygons = polygons.copy()
    polygons[beyond] = shapely.intersection(polygons[beyond], shapely.box(0, 0, *shape[::-1]))
    parts = [_overlaps(some, shape) for some in _portions(polygons)]
    return sparse.csr_matrix(sparse.vstack([sparse.csr_matrix((0, shape[0] * shape[1])), *parts]))


def _portions(polygons: NDArray[np.object_]) -> Iterator[NDArray[np.object_]]:
    """The polygons, as many at once as memory allows."""
    import shapely

    columns, rows = _sides(polygons)[1].T
    cost = np.cumsum(shapely.get_num_coordinates(polygons) / _CORNERS + rows * columns / _SQUARES)
    yield from np.split(polygons, np.flatnonzero(np.diff(np.floor(cost))) + 1)


def _sides(polygons: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First square (n, 2) and number of squares (n, 2) of the rectangles around polygons, x first.

    To the right there is one more than they reach into where they end on a line: an edge there needs its place.
    """
    import shapely

    bounds = np.nan_to_num(shapely.bounds(polygons))
    low = np.floor(bounds[:, :2])
    high = np.column_stack([np.floor(bounds[:, 2]) + 1, np.ceil(bounds[:, 3])])
    return low.astype(np.int64), (high - low).astype(np.int64)


def _overlaps(polygons: NDArray[np.object_], shape: tuple[int, int]) -> sparse.csr_matrix:
    low, size = _sides(polygons)
    ends = np.cumsum(size.prod(1))
    firsts = ends - size.prod(1)
    owner, start, end, sign = _edges(polygons)
    edge, start, end = _cut(start, end, axis=1)
    row = np.floor((start[:, 1] + end[:, 1]) / 2).astype(np.int64)
    piece, start, end = _cut(start, end, axis=0)
    edge, row = edge[piece], row[piece]
    owner = owner[edge]

    middle = (start[:, 0] + end[:, 0]) / 2
    column = np.floor(middle).astype(np.int64)
    # rounding may take a corner just over a line
    x = np.clip(column - low[owner, 0], 0, size[owner, 0] - 1)
    y = np.clip(row - low[owner, 1], 0, size[owner, 1] - 1)
    place = firsts[owner] + y * size[owner, 0] + x
    down = (end[:, 1] - start[:, 1]) * sign[edge]
    n_squares = int(ends[-1]) if len(ends) else 0
    own = np.bincount(place, down * (column + 1 - middle), n_squares)
    passed_on = np.bincount(place, down, n_squares)
    # in each row of a polygon what is passed on adds up to 0, so that one sum over all rows of all polygons will do
    area = own + np.cumsum(passed_on) - passed_on

    shared = np.flatnonzero(area > _ROUNDING)
    owner = np.searchsorted(ends, shared, side="right")
    within = shared - firsts[owner]
    row, column = low[owner, 1] + within // size[owner, 0], low[owner, 0] + within % size[owner, 0]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(polygons)))])
    values = np.minimum(area[shared], 1.0), row * shape[1] + column, indptr
    return sparse.csr_matrix(values, shape=(len(polygons), shape[0] * shape[1]))


def _edges(polygons: NDArray[np.object_]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Edges that go up or down: their polygon (n,), start and end (n, 2), and sign (n,), which shells and holes share.

    The sign makes areas positive inside of shells and negative inside of holes, whichever way their corners go round.
    """
    import shapely

    parts, of_part = shapely.get_parts(polygons, return_index=True)
    kept = shapely.get_type_id(parts) == _POLYGON
    parts, of_part = parts[kept], of_part[kept]
    rings, of_ring = shapely.get_rings(parts, return_index=True)
    is_shell = np.diff(of_ring, prepend=-1) > 0  # the first ring of a polygon
    sign = np.where(shapely.is_ccw(rings) == is_shell, -1.0, 1.0)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    edges = np.flatnonzero((ring[1:] == ring[:-1]) & (xy[1:, 1] != xy[:-1, 1]))
    return of_part[of_ring[ring[edges]]], xy[edges], xy[edges + 1], sign[ring[edges]]


def _cut(
    start: NDArray[np.float64], end: NDArray[np.float64], axis: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Edges cut at all whole numbers along an axis: of each piece its edge (n,), start and end (n, 2)."""
    first, last = start[:, axis], end[:, axis]
    lowest = np.floor(np.minimum(first, last)) + 1
    n_cuts = np.maximum(np.ceil(np.maximum(first, last)) - lowest, 0).astype(np.int64)
    n_pieces = n_cuts + 1
    edge = np.repeat(np.arange(len(start)), n_pieces)
    number = np.arange(len(edge)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    before = np.flatnonzero(number < n_cuts[edge])  # pieces that end at a cut, where the next one starts
    cut, number = edge[before], number[before]
    at = lowest[cut] + np.where(last[cut] > first[cut], number, n_cuts[cut] - 1 - number)
    share = (at - first[cut]) / (last[cut] - first[cut])
    points = start[cut] + share[:, None] * (end[cut] - start[cut])
    points[:, axis] = at
    starts, ends = start[edge], end[edge]
    ends[before], starts[before + 1] = points, points
    return edge, starts, ends
