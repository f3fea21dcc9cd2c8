"""From an image of any resolution to one token per superpixel: tiles with a halo over exact windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from sphistex.encoders.base import Encoder
from sphistex.encoders.window import Window


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
    """

    encoder: Encoder
    halo: int

    @classmethod
    def of(cls, encoder: Encoder, *, halo_px: int | None = None) -> Tiling:
        """Tiling with the encoder's own halo, unless one is given.

        Raises
        ------
        ValueError
            If the halo is no number of pixels, or leaves nothing of the tile.
        """
        if isinstance(halo_px, bool) or not isinstance(halo_px, int | np.integer | None):
            raise ValueError(f"halo_px={halo_px!r} must be a whole number of pixels, or None for the encoder's")
        halo_px = encoder.halo_px if halo_px is None else halo_px
        halo = -(-halo_px // encoder.patch_size)
        if halo_px < 0 or 2 * halo * encoder.patch_size >= encoder.tile_size:
            raise ValueError(
                f"halo_px={halo_px} must be at least 0 and less than half a tile of {encoder.tile_size} px"
            )
        return cls(encoder, halo)

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

    def window(self, image_shape: tuple[int, ...], mpp: float, block: Block) -> Window:
        """What a block needs of an image (c, y, x) of that shape, at the encoder's microns per pixel."""
        top, left, height, width = (value * self.encoder.patch_size for value in block.window)
        return Window.of(image_shape, self.encoder.mpp / mpp, (top, left), (height, width))

    def cut(self, picture: NDArray[np.uint8], block: Block) -> list[NDArray[np.uint8]]:
        """Tiles of a block out of its window, each (tile size, tile size, 3)."""
        side, corners = self.encoder.tile_size, []
        for tile in block.tiles:
            offsets = (span.first - first for span, first in zip(tile, block.window, strict=False))
            corners.append([offset * self.encoder.patch_size for offset in offsets])
        return [picture[top : top + side, left : left + side] for top, left in corners]

    def join(
        self, encoded: Sequence[NDArray[np.floating]], block: Block, tissue: NDArray[np.bool_]
    ) -> NDArray[np.float16]:
        """Tokens (dim, rows, columns) of a block from those of its tiles; zero outside the tissue.

        Raises
        ------
        ValueError
            If the encoder returned values that are not finite.
        """
        n_rows, n_columns = (part.stop - part.start for part in (block.rows, block.columns))
        tokens = np.zeros((n_rows, n_columns, self.encoder.dim), np.float16)
        limit = np.finfo(np.float16).max
        for (y, x), tile in zip(block.tiles, encoded, strict=True):
            found = tile[y.start - y.first : y.stop - y.first, x.start - x.first : x.stop - x.first]
            if not np.isfinite(found).all():
                raise ValueError(f"encoder={self.encoder.name!r} returned values that are not finite")
            place = np.s_[y.start - block.rows.start : y.stop - block.rows.start]
            across = np.s_[x.start - block.columns.start : x.stop - block.columns.start]
            tokens[place, across] = found if found.dtype == np.float16 else np.clip(found, -limit, limit)
        tokens[~tissue[block.rows, block.columns]] = 0
        return tokens.transpose(2, 0, 1)

    def _spans(self, start: int, stop: int) -> list[Span]:
        """As few tiles as cover ``[start, stop)`` with the halo, each accounting for about the same share."""
        side = self.encoder.tile_size // self.encoder.patch_size
        n_tiles = -(-(stop - start) // (side - 2 * self.halo))
        edges = np.linspace(start, stop, n_tiles + 1).round().astype(int).tolist()
        return [Span(first, last, first - (side - (last - first)) // 2) for first, last in pairwise(edges)]
