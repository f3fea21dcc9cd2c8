"""Scanners' own formats, through wsidata."""

from __future__ import annotations

from pathlib import Path

from spatialdata import get_pyramid_levels
from xarray import DataArray

SUFFIXES = {".mrxs", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".isyntax", ".dcm", ".vsi"}


def open_vendor(path: Path) -> tuple[list[DataArray], float | None]:
    """Levels (c, y, x) from fine to coarse, and microns per pixel, if the file says so."""
    try:
        from wsidata import open_wsi
    except ImportError as error:
        raise ImportError(
            f"image={str(path)!r}: files of this format need the extra `wsi`: pip install 'sphistex[wsi]'"
        ) from error
    slide = open_wsi(path, store=None, attach_images=True, attach_thumbnail=False, image_key="image")
    return list(get_pyramid_levels(slide.images["image"])), slide.properties.mpp
