"""From an image of any resolution to one token per superpixel: exact windows, tiles with a halo, batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sphistex.encoders.base import Encoder

# Pixels encoded at once by default, in tiles: what keeps the device busy without filling its memory.
_BATCH_PX = {"cpu": 2**20, "mps": 2**22, "cuda": 2**24}


@dataclass(frozen=True)
class Span:
    """Part of one axis that one tile accounts for, in superpixels: ``[start, stop)``; the tile begins at ``first``."""

    start: int
    stop: int
    first: int


@dataclass(frozen=True)
class Block:
    """A rectangle of superpixels, the tiles that cover it, and the window of the image these tiles need.

    Parameters
    ----------
    rows, columns
        The superpixels.
    tiles
        For each tile its span of rows and of columns.
    window
        First row, first column, height, width of all tiles together, in superpixels.
    """

    rows: slice
    columns: slice
    tiles: tuple[tuple[Span, Span], ...]
    window: tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiling:
    """How an encoder's tiles are laid over superpixels.

    Parameters
    ----------
    encoder
        The encoder.
    halo
        Tokens at least dropped on each side of a tile, which only serve as surroundings of the others.
    batch_size
        Tiles per call of the encoder.
    """

    encoder: Encoder
    halo: int
    batch_size: int

    @classmethod
    def of(cls, encoder: Encoder, *, halo_px: int | None = None, batch_size: int | None = None) -> Tiling:
        """Tiling with the encoder's own halo and a batch size that suits its device, unless they are given.

        Raises
        ------
        ValueError
            If the halo leaves nothing of the tile, or the batch is empty.
        """
        halo_px = encoder.halo_px if halo_px is None else halo_px
        halo = -(-halo_px // encoder.patch_size)
        if halo_px < 0 or 2 * halo * encoder.patch_size >= encoder.tile_size:
            raise ValueError(
                f"halo_px={halo_px} must be at least 0 and less than half a tile of {encoder.tile_size} px"
            )
        if batch_size is None:
            device = getattr(getattr(encoder, "device", None), "type", "cpu")
            batch_size = max(1, _BATCH_PX.get(device, 2**20) // encoder.tile_size**2)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        return cls(encoder, halo, batch_size)

    def block(self, rows: slice, columns: slice, tissue: NDArray[np.bool_]) -> Block:
        """Tiles that cover a rectangle of superpixels, without those that have no ``tissue`` (a mask of the grid)."""
        spans = [self._spans(part.start, part.stop) for part in (rows, columns)]
        tiles = tuple((y, x) for y, x in product(*spans) if tissue[y.start : y.stop, x.start : x.stop].any())
        if not tiles:
            return Block(rows, columns, tiles, (rows.start, columns.start, 0, 0))
        side = self.encoder.tile_size // self.encoder.patch_size
        top, left = (min(tile[axis].first for tile in tiles) for axis in (0, 1))
        bottom, right = (max(tile[axis].first for tile in tiles) + side for axis in (0, 1))
        return Block(rows, columns, tiles, (top, left, bottom - top, right - left))

    def read(self, image: Any, mpp: float, block: Block) -> NDArray[np.uint8]:
        """The block's window of an image (c, y, x), at the encoder's microns per pixel, as (height, width, 3)."""
        top, left, height, width = (value * self.encoder.patch_size for value in block.window)
        return read_window(image, self.encoder.mpp / mpp, (top, left), (height, width))

    def encode(self, picture: NDArray[np.uint8], block: Block, tissue: NDArray[np.bool_]) -> NDArray[np.float16]:
        """Tokens (dim, rows, columns) of a block whose window is ``picture``; zero outside the tissue.

        Raises
        ------
        ValueError
            If the encoder returns values that are not finite.
        """
        n_rows, n_columns = (part.stop - part.start for part in (block.rows, block.columns))
        tokens = np.zeros((n_rows, n_columns, self.encoder.dim), np.float16)
        for batch in _batched(block.tiles, self.batch_size):
            encoded = self.encoder(np.stack([self._cut(picture, block, tile) for tile in batch]))
            if not np.isfinite(encoded).all():
                raise ValueError(f"encoder={self.encoder.name!r} returned values that are not finite")
            limit = np.finfo(np.float16).max
            for (y, x), found in zip(batch, np.clip(encoded, -limit, limit), strict=True):
                place = np.s_[y.start - block.rows.start : y.stop - block.rows.start]
                across = np.s_[x.start - block.columns.start : x.stop - block.columns.start]
                tokens[place, across] = found[
                    y.start - y.first : y.stop - y.first, x.start - x.first : x.stop - x.first
                ]
        tokens[~tissue[block.rows, block.columns]] = 0
        return tokens.transpose(2, 0, 1)

    def _spans(self, start: int, stop: int) -> list[Span]:
        """As few tiles as cover ``[start, stop)`` with the halo, each accounting for about the same share."""
        side = self.encoder.tile_size // self.encoder.patch_size
        n_tiles = -(-(stop - start) // (side - 2 * self.halo))
        edges = np.linspace(start, stop, n_tiles + 1).round().astype(int).tolist()
        return [Span(first, last, first - (side - (last - first)) // 2) for first, last in pairwise(edges)]

    def _cut(self, picture: NDArray[np.uint8], block: Block, tile: tuple[Span, Span]) -> NDArray[np.uint8]:
        top, left = (
            (span.first - first) * self.encoder.patch_size for span, first in zip(tile, block.window, strict=False)
        )
        return picture[top : top + self.encoder.tile_size, left : left + self.encoder.tile_size]


def read_window(image: Any, scale: float, corner: tuple[float, float], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A rectangle of an image at another resolution; only the pixels it needs are read.

    Bicubic, with antialiasing where the image is shrunk (Pillow). Beyond its border the image is mirrored.

    Parameters
    ----------
    image
        RGB image (c, y, x), uint8, an array or a dask array.
    scale
        Image pixels per pixel of the result.
    corner
        Upper left corner (y, x) of the rectangle, in pixels of the result; may be negative.
    shape
        Height and width of the result in pixels.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(0, 160, 10, dtype=np.uint8).repeat(16).reshape(1, 16, 16).repeat(3, axis=0)
    >>> read_window(image, 2.0, (2, 0), (3, 2))[:, 0, 0]
    array([45, 65, 85], dtype=uint8)
    """
    starts = [first * scale for first in corner]
    stops = [(first + size) * scale for first, size in zip(corner, shape, strict=True)]
    exact = scale == 1 and all(float(value).is_integer() for value in starts)
    kernel = 0 if exact else int(np.ceil(2 * max(scale, 1.0))) + 1  # bicubic reaches two pixels of the coarser image
    lows = [int(np.floor(value)) - kernel for value in starts]
    highs = [int(np.ceil(value)) + kernel for value in stops]
    inside = [
        slice(min(max(low, 0), size - 1), max(min(high, size), 1))
        for low, high, size in zip(lows, highs, image.shape[1:], strict=True)
    ]
    window = image[:, inside[0], inside[1]]
    pixels = window.compute(scheduler="synchronous") if hasattr(window, "compute") else np.asarray(window)
    margins = [(part.start - low, high - part.stop) for part, low, high in zip(inside, lows, highs, strict=True)]
    picture = np.pad(pixels.transpose(1, 2, 0), [*margins, (0, 0)], mode="symmetric")
    if exact:
        return picture
    box = (starts[1] - lows[1], starts[0] - lows[0], stops[1] - lows[1], stops[0] - lows[0])
    resized = Image.fromarray(picture).resize(shape[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)


def _batched(items: tuple, size: int) -> Iterator[tuple]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
