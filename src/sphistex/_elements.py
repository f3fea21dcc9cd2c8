"""Which image, shapes and table of a SpatialData object are meant, when they are named and when they are not."""

from __future__ import annotations

import logging
import re
from typing import Any, Literal

from anndata import AnnData
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.transformations import get_transformation
from spatialdata.transformations.transformations import BaseTransformation
from xarray import DataArray

from sphistex.grid import SUPERPIXEL_UM

logger = logging.getLogger("sphistex")

# Key of `sdata.attrs["sphistex"]` under which `sphistex.io` notes {shapes_key: {"pitch_um": ..., "diameter_um": ...}}
# and, of images without spots, {image_key: {"mpp": ...}}.
INPUT_RECORD = "input"

_SPACE_RANGER_IMAGE = re.compile(r"(?P<id>.*?)_?(?P<size>full|hires|lowres|cytassist)_image")
_SPACE_RANGER_SIZES = ("full", "hires", "lowres", "cytassist")
_HD_BINS = re.compile(r"(?P<id>.*?)_?square_(?P<size>\d{3})um")


def candidates(sdata: SpatialData, kind: Literal["images", "shapes", "tables"]) -> list[str]:
    """Elements of a kind that were not made by sphistex itself."""
    made = set(sdata.attrs.get("sphistex", {})) - {INPUT_RECORD}
    return [name for name in getattr(sdata, kind) if name not in made]


def none_of(what: str, sdata: SpatialData) -> str:
    elements = {kind: list(getattr(sdata, kind)) for kind in ("images", "shapes", "tables")}
    return f"the SpatialData has no {what}; it holds {elements}. `sphistex.io.from_spots` makes one from plain parts"


def _named(sdata: SpatialData, kind: str, argument: str, name: str) -> str:
    if name not in getattr(sdata, kind):
        raise KeyError(f"{argument}={name!r} is not in sdata.{kind}: {list(getattr(sdata, kind))}")
    return name


def _only(names: list[str], what: str, argument: str) -> str:
    if len(names) > 1:
        raise ValueError(f"the SpatialData has several {what}: {names}; choose one with {argument}=")
    return names[0]


def choose_image(sdata: SpatialData, named: str | None, *, among: set[str] | None) -> str:
    """The named image, or the only one in the coordinate systems ``among``, or the finest of Space Ranger's."""
    if named is not None:
        return _named(sdata, "images", "image_key", named)
    names = candidates(sdata, "images")
    if not names:
        raise ValueError(none_of("image", sdata))
    if among is not None:
        names = [name for name in names if among & transforms_of(sdata.images[name]).keys()] or names
    if len(names) == 1:
        return names[0]
    sizes = {match["size"]: name for name in names if (match := _SPACE_RANGER_IMAGE.fullmatch(name))}
    ids = {match["id"] for name in names if (match := _SPACE_RANGER_IMAGE.fullmatch(name))}
    if len(ids) != 1 or len(sizes) != len(names):
        return _only(names, "images", "image_key")
    chosen = next(sizes[size] for size in _SPACE_RANGER_SIZES if size in sizes)
    logger.info("of the images %s, %r is used: the finest one", names, chosen)
    return chosen


def choose_shapes(sdata: SpatialData, named: str | None, table_key: str | None) -> str:
    """The named shapes, or the only spots or bins, preferably those that a table (``table_key``, if named) annotates.

    Of the bins of Visium HD in several sizes, those of a superpixel are taken. Other polygons only where there is
    nothing else.
    """
    if named is not None:
        _named(sdata, "shapes", "shapes_key", named)
        _check_areas(sdata, named)
        return named
    names = candidates(sdata, "shapes")
    if not names:
        raise ValueError(
            f"{none_of('shapes (spots)', sdata)}. Of a section of which there is only the image, a model that was "
            "fitted to others predicts: sphistex.tl.predict, or sphistex.tl.predict_histology"
        )
    tables = candidates(sdata, "tables") if table_key is None else [_named(sdata, "tables", "table_key", table_key)]
    found = [name for name in names if is_spots(name, sdata.shapes[name])] or names
    found = [name for name in found if any(name in _regions(sdata.tables[table]) for table in tables)] or found
    chosen = _of_hd_bins(found) or _only(found, "shapes", "shapes_key")
    _check_areas(sdata, chosen)
    return chosen


def hd_bin_um(shapes_key: str) -> int | None:
    """Side of the bins of Visium HD in µm, from the name that spatialdata-io gives them; None for other shapes."""
    match = _HD_BINS.fullmatch(shapes_key)
    return int(match["size"]) if match else None


def _of_hd_bins(names: list[str]) -> str | None:
    """Of the bins of one Visium HD section in several sizes, those of a superpixel or else the next larger ones."""
    sizes = {size: name for name in names if (size := hd_bin_um(name)) is not None}
    ids = {match["id"] for name in names if (match := _HD_BINS.fullmatch(name))}
    if len(ids) != 1 or len(sizes) < len(names) or len(names) == 1:
        return None
    chosen = sizes[min(sizes, key=lambda size: (size < SUPERPIXEL_UM, abs(size - SUPERPIXEL_UM)))]
    logger.info("of the bins %s, %r is used: those of the size of a superpixel", names, chosen)
    return chosen


def are_circles(shapes: Any) -> bool:
    return "radius" in shapes.columns and bool((shapes.geometry.geom_type == "Point").all())


def is_spots(name: str, shapes: Any) -> bool:
    """Whether these are circles or bins of Visium HD, and not, say, outlines of cells or regions."""
    return are_circles(shapes) or hd_bin_um(name) is not None


def _check_areas(sdata: SpatialData, name: str) -> None:
    shapes = sdata.shapes[name]
    if not len(shapes):
        raise ValueError(f"shapes {name!r} are empty; there are no spots to learn from")
    if not shapes.index.is_unique:
        raise ValueError(f"shapes {name!r} have duplicated index values, so that table rows cannot be matched to them")


def _regions(table: AnnData) -> list[str]:
    region = table.uns.get("spatialdata_attrs", {}).get("region", [])
    return [region] if isinstance(region, str) else [str(name) for name in region]


def choose_table(sdata: SpatialData, named: str | None, shapes_key: str) -> str:
    """The named table, or the only one that annotates the shapes."""
    if named is not None:
        _named(sdata, "tables", "table_key", named)
    names = [named] if named is not None else candidates(sdata, "tables")
    if not names:
        raise ValueError(none_of("table of counts", sdata))
    annotating = [name for name in names if shapes_key in _regions(sdata.tables[name])]
    if not annotating:
        found = {name: _regions(sdata.tables[name]) for name in names}
        raise ValueError(
            f"no table annotates the shapes {shapes_key!r}: {found} are the regions of the tables; "
            "link them with `sdata.set_table_annotates_spatialelement(...)`, or choose with table_key= and shapes_key="
        )
    return _only(annotating, f"tables that annotate {shapes_key!r}", "table_key")


def finest(labels: Any) -> DataArray:
    """Pixels (y, x) of labels, of the finest level where there are several."""
    return (labels if isinstance(labels, DataArray) else get_pyramid_levels(labels, n=0)).transpose("y", "x")


def transforms_of(element: Any) -> dict[str, BaseTransformation]:
    return dict(get_transformation(element, get_all=True))
