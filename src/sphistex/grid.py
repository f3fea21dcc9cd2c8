"""The superpixel lattice: the one coordinate frame that features, mask, bags, table and truth share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A last row or column thinner than this share of a superpixel is rounding in the scale, not image.
_SLIVER = 0.1
SUPERPIXEL_UM = 8.0


@dataclass(frozen=True)
class Grid:
    """Square lattice of superpixels over an image, anchored at the image's top-left corner.

    Superpixel ``(i, j)`` covers ``[i, i + 1) * pitch_um`` down and ``[j, j + 1) * pitch_um`` to the right.

    Parameters
    ----------
    shape
        Number of superpixels (rows, columns).
    mpp
        Microns per pixel of the full-resolution image.
    pitch_um
        Side of a superpixel in µm.

    Examples
    --------
    >>> grid = Grid.over_image((1600, 3200), mpp=0.5)
    >>> grid.shape, grid.pitch_px
    ((100, 200), 16.0)
    """

    shape: tuple[int, int]
    mpp: float
    pitch_um: float = SUPERPIXEL_UM

    @classmethod
    def over_image(cls, image_shape_px: tuple[int, int], mpp: float, pitch_um: float = SUPERPIXEL_UM) -> Grid:
        """Lattice that covers an image of (height, width) px."""
        pitch_px = pitch_um / mpp
        rows, columns = (max(1, int(np.ceil(size / pitch_px - _SLIVER))) for size in image_shape_px)
        return cls((rows, columns), float(mpp), float(pitch_um))

    @property
    def pitch_px(self) -> float:
        """Side of a superpixel in image pixels."""
        return self.pitch_um / self.mpp

    @property
    def size(self) -> int:
        """Number of superpixels."""
        return self.shape[0] * self.shape[1]

    @property
    def to_image(self) -> NDArray[np.float64]:
        """Affine (3, 3) from grid (x, y) = (column, row) to image pixels (x, y)."""
        return np.diag([self.pitch_px, self.pitch_px, 1.0])

    def centres_px(self, rows: ArrayLike, columns: ArrayLike) -> NDArray[np.float64]:
        """Centres of superpixels as (n, 2) image pixels, x first."""
        rows, columns = np.asarray(rows), np.asarray(columns)
        return (np.stack([columns, rows], axis=-1) + 0.5) * self.pitch_px
