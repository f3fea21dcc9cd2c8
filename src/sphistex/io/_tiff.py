"""TIFF files as lazy arrays, level by level of their pyramid: only the tiles asked for are decoded."""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

SUFFIXES = {".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".qptiff"}
# Microns in the units of OME-XML.
_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
# Colours that look like RGB with transparency, or like grey levels, and are neither.
_NOT_RGB = (
    tifffile.PHOTOMETRIC.PALETTE,
    tifffile.PHOTOMETRIC.SEPARATED,
    tifffile.PHOTOMETRIC.CIELAB,
    tifffile.PHOTOMETRIC.ICCLAB,
)
# Microns per pixel of what a microscope makes are below.
_COARSEST = 20.0
_APERIO_MPP = re.compile(r"\bMPP\s*=\s*(\d*\.?\d+)")


class TiffLevel:
    """One level of the first series of a TIFF file, which other processes open by its path.

    It is a (c, y, x) array, if the file names these axes: of what dask has to transpose itself it asks for whole
    chunks, but otherwise only for the part that is wanted.

    Parameters
    ----------
    path
        The file.
    level
        0 for the full resolution.
    """

    def __init__(self, path: Path, level: int) -> None:
        self.path, self.level = path, level
        self._pyramid = tifffile.TiffFile(path).series[0]
        self._series = self._pyramid.levels[level]
        stored = self._series.axes.lower().replace("s", "c")
        self.axes = "cyx" if sorted(stored) == sorted("cyx") else stored
        # Of each axis here, its place in the file.
        self._order = [stored.index(axis) for axis in self.axes]
        self.shape = tuple(self._series.shape[place] for place in self._order)
        self.dtype, self.ndim = self._series.dtype, len(self.shape)

    @cached_property
    def _array(self) -> Any:
        if self._series.dataoffset is not None and self._series.keyframe.is_memmappable:
            return tifffile.memmap(self.path, level=self.level, mode="r")  # uncompressed in one piece, without tiles
        return zarr.open(self._pyramid.aszarr(level=self.level), mode="r")

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a tile, or of a single pixel where there are none."""
        stored = getattr(self._array, "chunks", (1,) * self.ndim)
        return tuple(stored[place] for place in self._order)

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        stored = tuple(key[self._order.index(place)] for place in range(self.ndim))
        return np.array(self._array[stored]).transpose(self._order)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.path, self.level, self.path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _opened(path: Path, level: int, changed: int) -> TiffLevel:
    """A level that is opened once in a process, unless the file has ``changed``."""
    return TiffLevel(path, level)


def open_tiff(path: Path) -> tuple[list[TiffLevel], float | None]:
    """Levels of the first series, from fine to coarse, and the microns per pixel of the finest, if the file says so.

    Raises
    ------
    ValueError
        If it is no TIFF, or its colours are no RGB.
    """
    path = path.absolute()
    try:
        with tifffile.TiffFile(path) as file:
            count, mpp = len(file.series[0].levels), _mpp(file)
            colours = tifffile.PHOTOMETRIC(file.series[0].keyframe.photometric)
    except (tifffile.TiffFileError, IndexError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a TIFF: {error}") from error
    if colours in _NOT_RGB:
        raise ValueError(
            f"{str(path)!r} holds colours as {colours.name}, not as red, green and blue: convert it, for example with "
            "`vips colourspace in.tif out.tif srgb`"
        )
    levels = [TiffLevel(path, level) for level in range(count)]
    return [level for level in levels if level.axes == levels[0].axes and level.dtype == levels[0].dtype], mpp


def _mpp(file: tifffile.TiffFile) -> float | None:
    """Microns per pixel, from OME-XML, from Aperio's description or from the tags of the resolution."""
    if file.ome_metadata:
        pixels = ElementTree.fromstring(file.ome_metadata).find("{*}Image/{*}Pixels")
        stated = {} if pixels is None else pixels.attrib
        size, unit = stated.get("PhysicalSizeX"), stated.get("PhysicalSizeXUnit", "µm")
        return float(size) * _UM[unit] if size and unit in _UM else None
    page = file.series[0].keyframe
    if match := _APERIO_MPP.search(page.description):
        return float(match[1])
    try:
        per_um = page.get_resolution(unit="micrometer")[0]
    except (KeyError, ValueError, ZeroDivisionError):  # without unit
        return None
    # 72 or 300 dots per inch are how large a picture is printed
    return 1 / per_um if per_um * _COARSEST > 1 else None
