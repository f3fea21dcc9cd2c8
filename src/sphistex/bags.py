"""Capture geometry as a sparse matrix: the share of each superpixel's area that lies inside each spot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from sphistex._coverage import polygon_overlaps
from sphistex.grid import Grid

# Columns of a superpixel over which its overlap with a disk is integrated (exact along the other axis).
_SLICES = 64
# Pairs of a disk and a superpixel that are in memory at once.
_PAIRS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Bags:
    """Spots as bags of superpixels.

    Parameters
    ----------
    weights
        Sparse (n_spots, n_superpixels): the share, 0 to 1, of each superpixel's area inside each spot. Superpixels
        are in row-major order. ``weights @ per_superpixel_counts`` is what the spots would measure.
    grid
        The lattice the columns refer to.

    Examples
    --------
    >>> import numpy as np
    >>> grid = Grid((20, 20), mpp=0.5)
    >>> bags = Bags.from_disks(grid, np.array([[160.0, 160.0]]), radius_px=55.0)
    >>> round(float(bags.weights.sum()) * 8 * 8 / (np.pi * 27.5**2), 2)
    1.0
    """

    weights: sparse.csr_matrix
    grid: Grid

    @classmethod
    def from_disks(cls, grid: Grid, xy_px: ArrayLike, radius_px: ArrayLike) -> Bags:
        """Bags of circular spots with centres ``xy_px`` (n, 2) and radius (scalar or (n,)), in image pixels."""
        centres = np.asarray(xy_px, dtype=float) / grid.pitch_px
        radii = np.broadcast_to(np.asarray(radius_px, dtype=float) / grid.pitch_px, len(centres))
        side = 2 * int(np.ceil(radii.max(initial=0.0))) + 3
        at_once = max(1, _PAIRS_AT_ONCE // side**2)
        parts = [
            _disk_overlaps(centres[first : first + at_once], radii[first : first + at_once], grid)
            for first in range(0, len(centres), at_once)
        ]
        return cls(sparse.csr_matrix(sparse.vstack([sparse.csr_matrix((0, grid.size)), *parts])), grid)

    @classmethod
    def from_polygons(cls, grid: Grid, polygons: ArrayLike) -> Bags:
        """Bags of ``polygons`` (n,), shapely geometries in image pixels, such as the square bins of Visium HD.

        Examples
        --------
        >>> import shapely
        >>> bags = Bags.from_polygons(Grid((2, 2), mpp=1.0), [shapely.box(4, 0, 12, 8)])
        >>> bags.weights.toarray().tolist()
        [[0.5, 0.5, 0.0, 0.0]]
        """
        import shapely  # here, so that the computing core runs where there is none

        scaled = shapely.transform(np.asarray(polygons, dtype=object), lambda xy: xy / grid.pitch_px)
        return cls(polygon_overlaps(scaled, grid.shape), grid)

    def within(self, mask: NDArray[np.bool_]) -> Bags:
        """The same spots without the superpixels outside ``mask`` (rows, columns), such as a tissue mask."""
        weights = self.weights.copy()
        weights.data[~mask.ravel()[weights.indices]] = 0
        weights.eliminate_zeros()
        return Bags(weights, self.grid)

    def take(self, spots: ArrayLike) -> Bags:
        """The bags of some spots (indices or boolean)."""
        return Bags(self.weights[np.asarray(spots)], self.grid)

    def padded(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Bags as dense arrays: superpixel index and weight, each (n_spots, largest bag); padding has weight 0."""
        sizes = np.diff(self.weights.indptr)
        place = np.arange(sizes.max(initial=1)) < sizes[:, None]
        index = np.zeros(place.shape, dtype=np.int64)
        weight = np.zeros(place.shape, dtype=np.float32)
        index[place], weight[place] = self.weights.indices, self.weights.data
        return index, weight


def _disk_overlaps(centres: NDArray, radii: NDArray, grid: Grid) -> sparse.csr_matrix:
    """Area that disks share with the superpixels, (n_disks, n_superpixels); all in units of the grid."""
    reach = int(np.ceil(radii.max())) + 1
    offsets = np.arange(-reach, reach + 1)
    columns = np.floor(centres[:, :1]).astype(int) + offsets
    rows = np.floor(centres[:, 1:]).astype(int) + offsets
    overlap = _disk_square_overlap(
        columns[:, None, :] - centres[:, 0, None, None], rows[:, :, None] - centres[:, 1, None, None], radii
    )
    rows, columns = np.broadcast_arrays(rows[:, :, None], columns[:, None, :])
    spots = np.broadcast_to(np.arange(len(centres))[:, None, None], rows.shape)
    inside = (overlap > 1e-9) & (rows >= 0) & (rows < grid.shape[0]) & (columns >= 0) & (columns < grid.shape[1])
    index = rows[inside] * grid.shape[1] + columns[inside]
    return sparse.csr_matrix((overlap[inside], (spots[inside], index)), shape=(len(centres), grid.size))


def _disk_square_overlap(left: NDArray, top: NDArray, radii: NDArray) -> NDArray[np.float64]:
    """Area shared by unit squares (corner ``left``, ``top``) and disks of ``radii`` around the origin.

    Midpoint rule along x; along y the chord is clipped to the square exactly.
    """
    area = np.zeros(np.broadcast_shapes(left.shape, top.shape))
    for step in (np.arange(_SLICES) + 0.5) / _SLICES:
        half_chord = np.sqrt(np.maximum(radii[:, None, None] ** 2 - (left + step) ** 2, 0.0))
        area += np.clip(np.minimum(top + 1, half_chord) - np.maximum(top, -half_chord), 0.0, None)
    return area / _SLICES
