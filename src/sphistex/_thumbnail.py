"""Images made smaller in bounded memory, for people to look at."""

from __future__ import annotations

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from xarray import DataArray

# Rows that are read at once.
_STRIP_PX = 8192
# Pixels on a side of the squares that are looked at: decoding takes long enough.
_SAMPLES_PER_SIDE = 4


def shrink(image: DataArray, factor: int) -> tuple[NDArray[np.uint8], int]:
    """An image made smaller by at least ``factor``: the means of squares, (y, x, 3); and by how much it was.

    It is read strip by strip. Of large squares only every few pixels are looked at.

    Examples
    --------
    >>> image = DataArray(np.arange(3 * 40 * 60, dtype=np.uint8).reshape(3, 40, 60), dims=("c", "y", "x"))
    >>> small, factor = shrink(image, 9)
    >>> small.shape, factor
    ((4, 6, 3), 10)
    """
    step = max(1, factor // _SAMPLES_PER_SIDE)
    side = -(-factor // step)
    factor = step * side
    pixels = da.asarray(image.transpose("c", "y", "x").data)[:3]
    strip = max(1, _STRIP_PX // factor) * factor
    parts = [
        da.coarsen(np.mean, pixels[:, top : top + strip : step, ::step], {1: side, 2: side}, trim_excess=True)
        .astype(np.uint8)
        .compute()
        for top in range(0, max(pixels.shape[1] // factor, 1) * factor, strip)
    ]
    return np.moveaxis(np.concatenate(parts, axis=1), 0, -1), factor
