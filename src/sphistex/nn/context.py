"""Superpixel features with their surroundings, read block by block from a feature map of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Window = tuple[slice, slice]


class Array3D(Protocol):
    """What a feature map has to offer: a shape and lazy slicing, as numpy, dask and zarr arrays have."""

    shape: tuple[int, ...]

    def __getitem__(self, key: tuple[slice, ...], /) -> object: ...


@dataclass(frozen=True)
class FeatureMap:
    """Features (c, rows, columns) on the grid, the tissue mask, and the surroundings to add.

    Parameters
    ----------
    features
        (c, rows, columns), in memory or lazy.
    mask
        (rows, columns) boolean; superpixels outside it are never read as features nor as surroundings.
    context
        Radii in superpixels; radius r adds the mean over the (2r + 1)² superpixels around, 0 the superpixel itself.
    block
        Side of the blocks that are in memory at once, in superpixels.
    """

    features: Array3D
    mask: NDArray[np.bool_]
    context: tuple[int, ...] = (0,)
    block: int = 128

    def __post_init__(self) -> None:
        if tuple(self.features.shape[1:]) != self.mask.shape:
            raise ValueError(f"features {self.features.shape} and mask {self.mask.shape} are not on the same grid.")

    @property
    def dim(self) -> int:
        """Length of a superpixel's vector, surroundings included."""
        return self.features.shape[0] * len(self.context)

    def read(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Vectors of a window, (n_rows, n_columns, dim); zero outside the tissue."""
        halo = max(self.context)
        outer, inner = with_halo((rows, columns), halo, self.mask.shape)
        raw = np.asarray(self.features[(slice(None), *outer)], dtype=np.float32)
        tissue = self.mask[outer].astype(np.float32)
        raw = raw * tissue
        parts = [_masked_mean(raw, tissue, radius)[(slice(None), *inner)] for radius in self.context]
        return np.moveaxis(np.concatenate(parts) * tissue[inner], 0, -1)

    def blocks(self) -> Iterator[Window]:
        """Windows of ``block`` × ``block`` superpixels, less at the map's border, that hold tissue."""
        n_rows, n_columns = self.mask.shape
        for row in range(0, n_rows, self.block):
            for column in range(0, n_columns, self.block):
                window = slice(row, min(row + self.block, n_rows)), slice(column, min(column + self.block, n_columns))
                if self.mask[window].any():
                    yield window

    def places(self, window: Window) -> NDArray[np.int64]:
        """Where a block's tissue superpixels stand among those of the whole map, row by row, (n_superpixels,)."""
        rows, columns = window
        inside = self.mask[window]
        before = self._before_row[rows] + self.mask[rows, : columns.start].sum(1)
        return (before[:, None] + inside.cumsum(1) - 1)[inside]

    @cached_property
    def _before_row(self) -> NDArray[np.int64]:
        """Tissue superpixels in the rows above each row."""
        return np.concatenate([[0], self.mask.sum(1).cumsum()[:-1]])

    def gather(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some superpixels, given by their row-major index → (n, dim)."""
        row, column = np.unravel_index(index, self.mask.shape)
        out = np.zeros((len(index), self.dim), dtype=np.float32)
        for rows, columns in self.blocks():
            inside = np.flatnonzero(
                (row >= rows.start) & (row < rows.stop) & (column >= columns.start) & (column < columns.stop)
            )
            if len(inside):  # of the block only what is wanted is read
                down, across = row[inside], column[inside]
                top, left = down.min(), across.min()
                vectors = self.read(slice(top, down.max() + 1), slice(left, across.max() + 1))
                out[inside] = vectors[down - top, across - left]
        return out


def _masked_mean(values: NDArray[np.float32], mask: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Mean over the tissue of the (2 radius + 1)² superpixels around each; ``values`` are zero outside the mask."""
    if radius == 0:
        return values
    from scipy.ndimage import uniform_filter  # here, so that whole maps are predicted where there is only torch

    size = 2 * radius + 1
    total = uniform_filter(values, (1, size, size), mode="constant")
    share = uniform_filter(mask, size, mode="constant")
    return total / np.maximum(share, 0.5 / size**2)


def with_halo(window: Window, halo: int, shape: tuple[int, ...]) -> tuple[Window, Window]:
    """The window grown by ``halo`` inside ``shape``, and where the window lies in the grown one."""
    outer, inner = [], []
    for part, size in zip(window, shape, strict=True):
        start, stop = max(part.start, 0), min(part.stop, size)
        grown = max(start - halo, 0), min(stop + halo, size)
        outer.append(slice(*grown))
        inner.append(slice(start - grown[0], stop - grown[0]))
    return (outer[0], outer[1]), (inner[0], inner[1])
