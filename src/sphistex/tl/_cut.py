"""Results that a query of SpatialData has cut out of a section: where on the image they lie then."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex._elements import finest, transforms_of
from sphistex._section import affine_of, moved

# Transformations are rounded by less than this; images are cut to whole pixels.
_ROUNDING_PX, _HALF = 0.01, 0.5


def moved_px(sdata: SpatialData, table: AnnData, made: dict[str, Any]) -> NDArray[np.float64]:
    """What has to be added to ``obsm["spatial"]`` of a result for pixels (x, y) of its image as that is now.

    A query cuts the image, and leaves ``obsm["spatial"]`` in pixels of the whole. Where superpixels lie is then what
    their labels say; nothing has moved where these or the image are gone.
    """
    raster = _raster(sdata, table, made)
    if raster is None:
        return np.zeros(2)
    to_px, place, too_far = raster
    centre = (place - too_far)[None].astype(np.float64) + 0.5
    found = moved(centre, to_px)[0] - np.asarray(table.obsm["spatial"], dtype=float)[0]
    return np.zeros(2) if np.abs(found).max() < _ROUNDING_PX else found


def placed_too_far(sdata: SpatialData, table: AnnData, made: dict[str, Any]) -> NDArray[np.int_]:
    """By how many of its pixels (x, y), 0 or 1, a query has put the raster of a result too far to the right and down.

    A query takes pixels by their centres, and places what is left as if by their corners, rounded up. The first centre
    that is left lies less than a pixel from the edge of the image; where the query says that it lies farther, it has
    put the raster a pixel too far.
    """
    raster = _raster(sdata, table, made)
    return np.zeros(2, dtype=int) if raster is None else raster[2]


def _raster(
    sdata: SpatialData, table: AnnData, made: dict[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.int_]] | None:
    """Affine from the raster of a result to its image, place of the first superpixel in it, and ``placed_too_far``."""
    linked = table.uns.get("spatialdata_attrs", {})
    image_key, labels_key = str(made["section"]["image_key"]), str([*np.ravel(linked.get("region", "")), ""][0])
    if image_key not in sdata.images or labels_key not in sdata.labels:
        return None
    of_image, of_labels = transforms_of(sdata.images[image_key]), transforms_of(sdata.labels[labels_key])
    named = made["section"].get("coordinate_system")
    shared = [name for name in of_image if name in of_labels]
    ids, first = np.asarray(finest(sdata.labels[labels_key])), table.obs.iloc[0]
    pixels = np.flatnonzero(ids == first[linked["instance_key"]])
    if not shared or len(pixels) != 1:
        return None
    system = named if named in shared else shared[0]
    to_px = np.linalg.inv(affine_of(of_image[system])) @ affine_of(of_labels[system])
    place = np.array(np.unravel_index(pixels[0], ids.shape))[::-1]
    cut = np.array([first["array_col"], first["array_row"]]) > place  # columns or rows of the raster are gone
    pitch_px = float(made["pitch_um"]) / float(made["mpp"])
    too_far = cut & (moved(np.full((1, 2), 0.5), to_px)[0] > pitch_px - _HALF)
    return to_px, place, too_far.astype(int)
