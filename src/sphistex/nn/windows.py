"""Overlapping windows of superpixels in which whole maps are predicted, so that no window border shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Windows:
    """Disks of superpixels, each the shape of a spot, on a lattice of their own.

    The lattice is tied to the grid and not to the block that is in memory: the same superpixel is always predicted in
    the same windows. Neighbouring windows overlap; a superpixel's value is their mean, weighted by how near it lies
    to each window's centre.

    Parameters
    ----------
    radius
        Radius of a window in superpixels.
    stride
        Distance between window centres in superpixels.
    """

    radius: float
    stride: int

    @property
    def reach(self) -> int:
        """How far a window extends from its centre, in superpixels."""
        return int(self.radius)

    def over(
        self, rows: slice, columns: slice, mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Windows that touch a block of the grid.

        Parameters
        ----------
        rows, columns
            The block.
        mask
            Tissue of the whole grid (rows, columns).

        Returns
        -------
        Centres (n_windows, 2) as (row, column); members (n_windows, n_members, 2) as (row, column); their blending
        weights (n_windows, n_members), 0 outside the tissue.
        """
        offset = np.arange(-self.reach, self.reach + 1)
        disk = np.stack(np.meshgrid(offset, offset, indexing="ij"), -1).reshape(-1, 2)
        distance = np.linalg.norm(disk, axis=1)
        disk, distance = disk[distance <= self.radius], distance[distance <= self.radius]
        taper = np.cos(0.5 * np.pi * distance / (self.radius + 1.0)) ** 2

        centres = np.stack(
            np.meshgrid(*(self._centres(part) for part in (rows, columns)), indexing="ij"), axis=-1
        ).reshape(-1, 2)
        members = centres[:, None] + disk
        inside = ((members >= 0) & (members < mask.shape)).all(-1)
        members = members.clip(0, np.array(mask.shape) - 1)
        inside &= mask[members[..., 0], members[..., 1]]
        block = np.array([[rows.start, columns.start], [rows.stop, columns.stop]])
        kept = (inside & ((members >= block[0]) & (members < block[1])).all(-1)).any(1)
        return centres[kept], members[kept], (taper * inside)[kept].astype(np.float32)

    def _centres(self, part: slice) -> NDArray[np.int64]:
        first = (part.start - self.reach) // self.stride * self.stride
        return np.arange(first, part.stop + self.reach + 1, self.stride)
