"""Pictures as lazy arrays (c, y, x), from arrays or files, without reading more of them than is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from xarray import DataArray

from sphistex.io import _tiff, _vendor
from sphistex.io._ome_zarr import open_ome_zarr

ImageLike: TypeAlias = "str | Path | np.ndarray | da.Array | DataArray"

# JPEG and PNG are decoded whole: 2**29 px are 1.6 GB of RGB.
_MAX_DECODED_PX = 2**29
_CHUNK_PX = 1024
# Colours of JPEG, PNG and GIF files that PIL turns into RGB.
_NOT_RGB = ("CMYK", "P", "PA", "YCbCr")


@dataclass(frozen=True)
class Picture:
    """A picture as lazy arrays.

    Parameters
    ----------
    levels
        Full resolution and, where the file has them, coarser levels, each (c, y, x).
    mpp
        Microns per pixel of the full resolution, where the file says so.
    """

    levels: list[DataArray]
    mpp: float | None


def open_picture(image: ImageLike) -> Picture:
    """Open a picture as lazy arrays with the dimensions (c, y, x).

    Parameters
    ----------
    image
        Array (y, x, c) or (c, y, x), or the path of a TIFF, JPEG or PNG file, of an OME-Zarr folder, or of a file in a
        scanner's own format (with the extra ``wsi``).

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ImportError
        If the file needs the extra ``wsi``, which is not installed.
    ValueError
        If the file is no picture, or one too large to be decoded whole, or it has no colour channels.

    Examples
    --------
    >>> [level.sizes["x"] for level in open_picture(np.zeros((40, 50, 3), dtype=np.uint8)).levels]
    [50]
    """
    if isinstance(image, DataArray):
        levels, axes, mpp, name = [image.data], "".join(str(dim) for dim in image.dims), None, "image"
    elif isinstance(image, str | Path):
        levels, axes, mpp = _open_file(Path(image))
        name = str(image)
    else:
        levels, axes, mpp, name = [image], "", None, "image"
    return Picture([_lazy(level, axes, name) for level in levels], mpp)


def open_image(image: ImageLike) -> DataArray:
    """The full resolution of a picture, as :func:`open_picture` opens it."""
    return open_picture(image).levels[0]


def _lazy(pixels: Any, axes: str, name: str) -> DataArray:
    if pixels.ndim != 3:
        raise ValueError(
            f"{name!r} has the shape {tuple(pixels.shape)}: a colour image (y, x, c) or (c, y, x) is needed; "
            "repeat a grey channel three times"
        )
    axes = axes if sorted(axes) == ["c", "x", "y"] else _guess_axes(pixels.shape, name)
    lazy = pixels if isinstance(pixels, da.Array) else da.from_array(pixels, chunks=_chunks(pixels, axes), name=False)
    return DataArray(lazy, dims=tuple(axes)).transpose("c", "y", "x")


def _guess_axes(shape: tuple[int, ...], name: str) -> str:
    """Which axis holds the colours: a last or first one of 1 to 4 channels."""
    few = [size <= 4 for size in shape]
    if few[2] and not few[0]:
        return "yxc"
    if few[0] and not few[2]:
        return "cyx"
    raise ValueError(f"{name!r} has the shape {tuple(shape)}, in which the colour channels are not first or last")


def _chunks(pixels: Any, axes: str) -> tuple[int, ...]:
    """Chunks of about 1024², in whole tiles of the file where there are any."""
    tiles = getattr(pixels, "chunks", (1,) * pixels.ndim)
    sizes = []
    for axis, size, tile in zip(axes, pixels.shape, tiles, strict=True):
        sizes.append(size if axis == "c" else min(size, tile * max(1, _CHUNK_PX // tile)))
    return tuple(sizes)


def _open_file(path: Path) -> tuple[list[Any], str, float | None]:
    """Levels of a file, their axes, and microns per pixel."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"image={str(path)!r} does not exist")
    if suffix in _vendor.SUFFIXES:
        levels, mpp = _vendor.open_vendor(path)
        return [level.transpose("c", "y", "x").data for level in levels], "cyx", mpp
    if path.is_dir():
        return open_ome_zarr(path)
    if suffix in _tiff.SUFFIXES:
        tiff_levels, mpp = _tiff.open_tiff(path)
        return list(tiff_levels), tiff_levels[0].axes, mpp
    return [_decoded(path)], "yxc", None


def _decoded(path: Path) -> NDArray[Any]:
    with _pixel_limit(_MAX_DECODED_PX):
        try:
            with Image.open(path) as picture:
                # four inks, or numbers of colours, are no red, green and blue
                return np.asarray(picture.convert("RGB") if picture.mode in _NOT_RGB else picture)
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"{str(path)!r} has more than {_MAX_DECODED_PX:,} px, too many to be decoded whole, as its format "
                "requires; convert it to a tiled TIFF, for example with `vips tiffsave --tile --pyramid`"
            ) from error
        except OSError as error:
            raise ValueError(f"{str(path)!r} cannot be read as a picture: {error}") from error


@contextmanager
def _pixel_limit(pixels: int) -> Iterator[None]:
    """Let PIL open pictures of up to ``pixels``; it raises above twice its limit, and warns above the limit."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
