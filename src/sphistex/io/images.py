"""Pictures as lazy arrays (c, y, x), from arrays or files, without reading more of them than is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image
from xarray import DataArray

ImageLike: TypeAlias = "str | Path | np.ndarray | da.Array | DataArray"

# JPEG and PNG are decoded whole: 2**29 px are 1.6 GB of RGB.
_MAX_DECODED_PX = 2**29
_CHUNK_PX = 1024
_TIFF_SUFFIXES = {".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".qptiff"}


def open_image(image: ImageLike) -> DataArray:
    """Open a picture as a lazy array with the dimensions (c, y, x).

    Parameters
    ----------
    image
        Array (y, x, c) or (c, y, x), or the path of a TIFF, JPEG or PNG file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is no picture, or one too large to be decoded whole, or it has no colour channels.

    Examples
    --------
    >>> open_image(np.zeros((40, 50, 3), dtype=np.uint8)).sizes["x"]
    50
    """
    if isinstance(image, DataArray):
        pixels, name = image.data, "image"
        axes = "".join(str(dim) for dim in image.dims)
    elif isinstance(image, str | Path):
        pixels, axes = _open_file(Path(image))
        name = str(image)
    else:
        pixels, axes, name = image, "", "image"
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


def _open_file(path: Path) -> tuple[Any, str]:
    if not path.is_file():
        raise FileNotFoundError(f"image={str(path)!r} does not exist")
    if path.suffix.lower() in _TIFF_SUFFIXES:
        return _open_tiff(path)
    with _pixel_limit(_MAX_DECODED_PX):
        try:
            with Image.open(path) as picture:
                return np.asarray(picture), "yxc"
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"{str(path)!r} has more than {_MAX_DECODED_PX:,} px, too many to be decoded whole, as its format "
                "requires; convert it to a tiled TIFF, for example with `vips tiffsave --tile`"
            ) from error
        except OSError as error:
            raise ValueError(f"{str(path)!r} cannot be read as a picture: {error}") from error


def _open_tiff(path: Path) -> tuple[Any, str]:
    """Full resolution of the first series, as an array over the file: only the tiles asked for are decoded."""
    try:
        series = tifffile.TiffFile(path).series[0]
    except (tifffile.TiffFileError, IndexError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a TIFF: {error}") from error
    axes = series.axes.lower().replace("s", "c")
    if series.dataoffset is not None and series.keyframe.is_memmappable:
        return _Uncopied(tifffile.memmap(path, mode="r")), axes  # uncompressed in one piece, which has no tiles
    return zarr.open(series.aszarr(level=0), mode="r"), axes


class _Uncopied:
    """A memory-mapped array without a ``copy`` method: dask would call that, and read the whole file."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return np.array(self._array[key])


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
