"""The positions of a section's lattice: its measured spots on tissue, or a lattice laid over its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import ShapesModel

from sphistex._array import Kind, array_coordinates, lattice_over
from sphistex._checks import check_spot_size
from sphistex._scale import VISIUM_DIAMETER_UM, VISIUM_PITCH_UM, lattice_of
from sphistex._section import (
    check_mpp,
    has_spots,
    image_alone,
    is_image_alone,
    recorded_mpp,
    resolve_section,
    resolve_spots,
)
from sphistex.pp.tissue import on_tissue, tissue_mask
from sphistex.tl._inputs import tissue_of


@dataclass(frozen=True)
class Positions:
    """Positions of a lattice on an image.

    Parameters
    ----------
    image_key, image_shape, mpp
        The image, its height and width in pixels, and its microns per pixel.
    tissue
        Tissue mask on the grid of 8 µm superpixels.
    xy_px, radius_px
        Centres (n, 2), x first, and radii (n,) in image pixels.
    array
        Row and column (n, 2), as on Visium arrays.
    kind, pitch_um
        Which lattice, and the distance between neighbours in µm.
    names, instances
        Names (n,), and what the shapes' index calls them (n,).
    shapes_key, table_key
        The measured spots and their counts; empty where there are none.
    shapes
        Circles of positions that are not measured spots; None of measured ones.
    """

    image_key: str
    image_shape: tuple[int, int]
    mpp: float
    tissue: NDArray[np.bool_]
    xy_px: NDArray[np.float64]
    radius_px: NDArray[np.float64]
    array: NDArray[np.int64]
    kind: Kind
    pitch_um: float
    names: Sequence[str]
    instances: NDArray[Any]
    shapes_key: str = ""
    table_key: str = ""
    shapes: gpd.GeoDataFrame | None = None


def region_of(key_added: str) -> str:
    """Name of the shapes that a table of positions annotates which are not measured spots."""
    return f"{key_added}_spots"


def find_positions(
    sdata: SpatialData,
    *,
    image_key: str | None,
    shapes_key: str | None,
    table_key: str | None,
    mpp: float | None,
    spot_pitch_um: float | None,
    tissue_key: str,
    lattice: Kind | None = None,
    pitch_um: float = VISIUM_PITCH_UM,
    diameter_um: float = VISIUM_DIAMETER_UM,
) -> Positions:
    """The positions of a section; the tissue mask is made if there is none.

    Raises
    ------
    KeyError, ValueError
        If elements cannot be used, or there is no position on tissue.
    """
    if lattice is None and not (is_image_alone(sdata) and shapes_key is None and table_key is None):
        return _of_spots(sdata, image_key, shapes_key, table_key, mpp, spot_pitch_um, tissue_key)
    if lattice not in (None, "hexagonal", "square"):
        raise ValueError(f"lattice={lattice!r} must be 'hexagonal', 'square', or None for that of the spots")
    check_spot_size(diameter_um, pitch_um)
    return _over_tissue(sdata, image_key, shapes_key, mpp, tissue_key, lattice or "hexagonal", pitch_um, diameter_um)


def _of_spots(
    sdata: SpatialData,
    image_key: str | None,
    shapes_key: str | None,
    table_key: str | None,
    mpp: float | None,
    spot_pitch_um: float | None,
    tissue_key: str,
) -> Positions:
    section = resolve_section(
        sdata,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        mpp=mpp,
        spot_pitch_um=spot_pitch_um,
    )
    found = lattice_of(section.xy_px)
    if found.kind == "irregular":
        raise ValueError(
            f"shapes_key={section.shapes_key!r}: its spots lie on no regular lattice; pass lattice='hexagonal', which "
            "is laid over the tissue instead"
        )
    array = array_coordinates(section.xy_px, found.pitch_px, found.kind)
    if tissue_key not in sdata.labels:
        tissue_mask(
            sdata,
            image_key=section.image_key,
            shapes_key=section.shapes_key,
            mpp=section.mpp,
            spot_pitch_um=section.pitch_um,
            key_added=tissue_key,
        )
    tissue = tissue_of(sdata, section, tissue_key)
    kept = on_tissue(tissue, section.grid, section.xy_px)
    if not kept.any():
        raise ValueError(f"tissue_key={tissue_key!r}: none of the {len(kept)} spots lies on tissue")
    instance_key = section.table.uns["spatialdata_attrs"]["instance_key"]
    return Positions(
        image_key=section.image_key,
        image_shape=(section.image.sizes["y"], section.image.sizes["x"]),
        mpp=section.mpp,
        tissue=tissue,
        xy_px=section.xy_px[kept],
        radius_px=section.radius_px[kept],
        array=array[kept],
        kind=found.kind,
        pitch_um=section.pitch_um,
        names=list(section.table.obs_names[kept]),
        instances=section.table.obs[instance_key].to_numpy()[kept],
        shapes_key=section.shapes_key,
        table_key=section.table_key,
    )


def _over_tissue(
    sdata: SpatialData,
    image_key: str | None,
    shapes_key: str | None,
    mpp: float | None,
    tissue_key: str,
    kind: Kind,
    pitch_um: float,
    diameter_um: float,
) -> Positions:
    if mpp is None and has_spots(sdata):
        spots = resolve_spots(sdata, image_key=image_key, shapes_key=shapes_key)
        image_key, mpp = spots.image_key, spots.mpp
    mpp = recorded_mpp(sdata, image_key) if mpp is None else mpp
    if mpp is None:
        raise ValueError("mpp=None, and there are no spots that tell the scale: pass mpp=, the microns per image pixel")
    check_mpp(mpp)
    section = image_alone(sdata, [], image_key=image_key, mpp=mpp)
    if tissue_key not in sdata.labels:
        tissue_mask(sdata, image_key=section.image_key, mpp=mpp, key_added=tissue_key)
    tissue = tissue_of(sdata, section, tissue_key)
    height, width = section.image.sizes["y"], section.image.sizes["x"]
    xy_px, array = lattice_over((0, 0, width, height), pitch_um / mpp, kind)
    kept = on_tissue(tissue, section.grid, xy_px)
    if not kept.any():
        raise ValueError(
            f"tissue_key={tissue_key!r}: no position of a lattice of {pitch_um:g} µm lies on tissue; look at the mask, "
            "and pass your own with sphistex.pp.tissue_mask(sdata, mask=...) if it is wrong"
        )
    xy_px, array = xy_px[kept], array[kept]
    radius_px = np.full(len(xy_px), diameter_um / 2 / mpp)
    circles = gpd.GeoDataFrame({"radius": radius_px}, geometry=gpd.points_from_xy(*xy_px.T))
    return Positions(
        image_key=section.image_key,
        image_shape=(height, width),
        mpp=mpp,
        tissue=tissue,
        xy_px=xy_px,
        radius_px=radius_px,
        array=array,
        kind=kind,
        pitch_um=pitch_um,
        names=[f"{row}x{column}" for row, column in array],
        instances=np.arange(len(xy_px)),
        shapes=ShapesModel.parse(circles, transformations=section.image_transforms),
    )
