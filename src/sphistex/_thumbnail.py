"""Images made smaller in bounded memory, for people to look at."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from xarray import DataArray

from sphistex._readable import readable

_THUMBNAIL_PX = 2000
# Pixels of a strip that is read at once, and the side of the blocks in which it is averaged.
_STRIP_PX, _BLOCK_PX = 2**27, 2048


def thumbnail(levels: list[DataArray], diameter_px: float) -> dict[str, Any]:
    """Small picture of an image pyramid, the finest level first, and scale factors, as squidpy expects of Visium."""
    level = cheapest(levels, _THUMBNAIL_PX)
    factor = max(1, -(-max(level.sizes["y"], level.sizes["x"]) // _THUMBNAIL_PX))
    scale = level.sizes["x"] / levels[0].sizes["x"] / factor
    return {
        "images": {"hires": shrink(level, factor)},
        "scalefactors": {"spot_diameter_fullres": float(diameter_px), "tissue_hires_scalef": scale},
    }


def cheapest(levels: list[DataArray], at_least_px: int) -> DataArray:
    """The level of a pyramid, the finest first, to make a picture of ``at_least_px`` from.

    On disk it is the coarsest that is fine enough. Where coarse levels would be computed from the finest, which takes
    many times as long as making that smaller here, it is the finest: it has the shortest graph.
    """
    fine = [level for level in levels if max(level.sizes["y"], level.sizes["x"]) >= at_least_px] or levels[:1]
    return min(reversed(fine), key=lambda level: len(level.data.dask))


def shrink(image: DataArray, factor: int) -> NDArray[np.uint8]:
    """An image made smaller: the means of squares of ``factor`` pixels, (y, x, 3). It is read strip by strip.

    Examples
    --------
    >>> image = DataArray(np.arange(3 * 40 * 60, dtype=np.uint8).reshape(3, 40, 60), dims=("c", "y", "x"))
    >>> shrink(image, 10).shape
    (4, 6, 3)
    """
    pixels = da.asarray(image.transpose("c", "y", "x").data)[:3]
    height, width = (size // factor * factor for size in pixels.shape[1:])
    strip, block = (max(1, size // factor) * factor for size in (_STRIP_PX // max(width, 1), _BLOCK_PX))
    parts = []
    for top in range(0, height, strip):
        squares = pixels[:, top : min(top + strip, height), :width].rechunk((-1, block, block))
        steps = zip(squares.chunks, (1, factor, factor), strict=True)
        chunks = tuple(tuple(size // step for size in sizes) for sizes, step in steps)
        with readable("the image"):
            parts.append(squares.map_blocks(_reduced, factor, chunks=chunks, dtype=np.uint8).compute())
    return np.moveaxis(np.concatenate(parts, axis=1), 0, -1)


def _reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.fromarray(channel).reduce(factor)) for channel in pixels])
