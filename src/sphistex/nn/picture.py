"""A section as a small picture: one pixel per lattice position, with values as channels.

Rows and columns are those of Visium arrays: on a hexagonal lattice row and column of a position are both even or both
odd, and its six neighbours are two columns away in its row, and one column away in the next rows; on a square lattice
every whole number is a position. Pictures of hexagonal lattices are sheared, so that no pixel is wasted and the six
neighbours of a pixel are always the same six of the eight pixels around it (axial coordinates).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

# Rows or columns without positions that are kept between pieces of tissue, so that none is seen as another's
# surroundings. More would make pictures grow with the slide and not with the tissue.
_GAP = 16


@dataclass(frozen=True)
class Layout:
    """Which pixel of its picture each of n positions has.

    Pieces of tissue that lie far apart are brought closer together.

    Parameters
    ----------
    rows, columns
        Pixels (n,), from 0.
    hexagonal
        Whether the lattice is hexagonal; otherwise it is square.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    hexagonal: bool

    @classmethod
    def of(cls, array_row: ArrayLike, array_col: ArrayLike, *, hexagonal: bool) -> Layout:
        """Layout of positions with these array coordinates (n,).

        Raises
        ------
        ValueError
            If two positions share a pixel, or a position does not lie on the hexagonal lattice.

        Examples
        --------
        >>> Layout.of([0, 0, 1], [0, 2, 1], hexagonal=True).shape
        (2, 2)
        """
        row, column = np.asarray(array_row, dtype=np.int64), np.asarray(array_col, dtype=np.int64)
        if hexagonal:
            if ((row + column) % 2).any():
                raise ValueError("array_row + array_col is odd for some positions: they lie on no hexagonal lattice")
            column = (column - row) // 2
        row, column = _without_gaps(row), _without_gaps(column)
        if len(np.unique(np.stack([row, column]), axis=1).T) < len(row):
            raise ValueError("several positions have the same array_row and array_col")
        return cls(row, column, hexagonal)

    def turned(self, number: int) -> Layout:
        """The same positions turned or mirrored: a hexagonal lattice has 12 ways, a square one 8.

        Examples
        --------
        >>> Layout.of([0, 0, 1], [0, 1, 0], hexagonal=False).turned(1).columns.tolist()
        [0, 0, 1]
        """
        row, column = self.rows, self.columns
        for _ in range(number // 2 % (6 if self.hexagonal else 4)):
            row, column = (row + column, -row) if self.hexagonal else (column, -row)
        if number % 2:
            row, column = column, row
        return Layout(row - row.min(), column - column.min(), self.hexagonal)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return int(self.rows.max()) + 1, int(self.columns.max()) + 1

    @property
    def mask(self) -> Tensor:
        """Pixels that are positions, (height, width) boolean."""
        mask = torch.zeros(self.shape, dtype=torch.bool)
        mask[self.rows, self.columns] = True
        return mask

    def picture(self, values: ArrayLike | Tensor) -> Tensor:
        """Picture (channels, height, width) of values (n, channels); zero where there is no position."""
        values = torch.as_tensor(values, dtype=torch.float32)  # stays on its device
        picture = values.new_zeros((values.shape[1], *self.shape))
        picture[:, self.rows, self.columns] = values.T
        return picture

    def values(self, picture: Tensor) -> Tensor:
        """Values (n, channels) of the positions in a picture (channels, height, width)."""
        return picture[:, self.rows, self.columns].T


def _without_gaps(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows or columns (n,) from 0, with no more than ``_GAP`` empty ones in a row."""
    used, place = np.unique(index, return_inverse=True)
    steps = np.minimum(np.diff(used, prepend=used[:1]), _GAP + 1)
    return np.cumsum(steps)[place]
