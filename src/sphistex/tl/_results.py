"""A result by name, and the section that it was made from."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex._checks import check_open
from sphistex._elements import transforms_of
from sphistex._section import Section, affine_of, moved, resolve_section
from sphistex.tl._expression import find_table
from sphistex.tl._superpixels import finest
from sphistex.tl._trust import made_how

# A superpixel belongs to a spot that covers this share of it.
_INSIDE = 0.5
# Transformations are rounded by less than this; images are cut to whole pixels.
_ROUNDING_PX, _HALF = 0.01, 0.5


def find_result(sdata: SpatialData, table_key: str) -> tuple[AnnData, dict[str, Any]]:
    """Table of a result, and how it was made, whatever name it is stored under now.

    Raises
    ------
    KeyError
        If there is no table of that name.
    ValueError
        If it is no result, has no superpixels or genes, or is a lazy one that was not opened.
    """
    table = find_table(sdata, table_key)
    try:
        made = made_how(table, table_key)
    except ValueError:
        made = {}
    if "section" not in made or not {"array_row", "array_col"} <= set(table.obs):
        results = [name for name, other in sdata.tables.items() if "section" in other.uns.get(name, {})]
        raise ValueError(
            f"table_key={table_key!r} is a table, but not a result of sphistex.tl.super_resolve; results are {results}"
        )
    check_open(table, table_key)
    return table, made


def section_of(sdata: SpatialData, made: dict[str, Any], table_key: str) -> Section:
    """The image, spots and counts that a result was made from.

    Raises
    ------
    KeyError, ValueError
        If they are gone, or it was made from an image alone.
    """
    if not made.get("spots", True):
        raise ValueError(f"table_key={table_key!r} was predicted from an image alone: there are no spots")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what there is to say was said when the result was made
        return resolve_section(sdata, mpp=float(made["mpp"]), **made["section"])


def moved_px(sdata: SpatialData, table: AnnData, made: dict[str, Any]) -> NDArray[np.float64]:
    """What has to be added to ``obsm["spatial"]`` of a result for pixels (x, y) of its image as that is now.

    A query of SpatialData cuts the image, and leaves ``obsm["spatial"]`` in pixels of the whole. Where superpixels lie
    is then what their labels say; nothing has moved where these or the image are gone.
    """
    linked = table.uns.get("spatialdata_attrs", {})
    image_key, labels_key = str(made["section"]["image_key"]), str([*np.ravel(linked.get("region", "")), ""][0])
    nowhere = np.zeros(2)
    if image_key not in sdata.images or labels_key not in sdata.labels:
        return nowhere
    of_image, of_labels = transforms_of(sdata.images[image_key]), transforms_of(sdata.labels[labels_key])
    named = made["section"].get("coordinate_system")
    shared = [name for name in of_image if name in of_labels]
    ids, instance = np.asarray(finest(sdata.labels[labels_key])), table.obs[linked["instance_key"]].iloc[0]
    pixels = np.flatnonzero(ids == instance)
    if not shared or len(pixels) != 1:
        return nowhere
    system = named if named in shared else shared[0]
    to_px = np.linalg.inv(affine_of(of_image[system])) @ affine_of(of_labels[system])
    place = np.array(np.unravel_index(pixels[0], ids.shape))[::-1]
    first_row = table.obs.iloc[0]
    cut = np.array([first_row["array_col"], first_row["array_row"]]) > place  # rows or columns of the raster are gone
    # SpatialData takes pixels by their centres, and places what is left as if by their corners, rounded up: in half of
    # the cases a pixel too far. The first centre that is left lies less than a pixel from the edge of the image.
    pitch_px = float(made["pitch_um"]) / float(made["mpp"])
    too_far = cut & (moved(np.full((1, 2), 0.5), to_px)[0] > pitch_px - _HALF)
    found = moved(place[None] + 0.5, to_px)[0] - pitch_px * too_far - np.asarray(table.obsm["spatial"], dtype=float)[0]
    return nowhere if np.abs(found).max() < _ROUNDING_PX else found


def spot_of_each(sdata: SpatialData, section: Section, table: AnnData, made: dict[str, Any]) -> NDArray[np.intp]:
    """The spot that each superpixel (n_superpixels,) lies in, -1 where there is none."""
    grid, share = section.grid, section.bags.weights.tocoo()
    inside = share.data >= _INSIDE
    of_place = np.full(grid.size, -1, dtype=np.intp)
    of_place[share.col[inside]] = share.row[inside]
    centres = np.asarray(table.obsm["spatial"]) + moved_px(sdata, table, made)
    column, row = np.floor(centres / grid.pitch_px).astype(np.intp).T
    # of an image that was cut, superpixels on the edge may lie with their centre beyond it
    inside = (row >= 0) & (row < grid.shape[0]) & (column >= 0) & (column < grid.shape[1])
    return np.where(inside, of_place[np.where(inside, row * grid.shape[1] + column, 0)], -1)
