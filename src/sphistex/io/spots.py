"""A SpatialData section from plain parts: a picture, a table of counts and the spot centres."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale
from xarray import DataArray, Dataset, DataTree

from sphistex._checks import check_counts, check_rgb, check_spot_size
from sphistex._elements import INPUT_RECORD
from sphistex._scale import lattice_of, scale_from_lattice
from sphistex.io.images import ImageLike, Picture, open_picture

# Smaller levels are added for viewing until a picture is no larger than this (pixels).
_OVERVIEW_PX = 2048


def from_spots(
    image: ImageLike,
    adata: AnnData,
    xy_px: ArrayLike,
    *,
    spot_diameter_um: float,
    spot_pitch_um: float,
) -> SpatialData:
    """Make a SpatialData section from an H&E image, counts and spot centres.

    The result holds the image ``"image"``, the circles ``"spots"`` and the table ``"counts"``, in the coordinate
    system ``"global"``, whose unit is one image pixel. The input is not changed.

    Parameters
    ----------
    image
        8-bit RGB(A) image at full resolution, (y, x, c) or (c, y, x): an array, or the path of a file. TIFF files and
        OME-Zarr folders are read lazily, part by part, and keep the coarser levels that they have; JPEG and PNG files
        are decoded whole.
    adata
        Raw counts (n_spots, n_genes).
    xy_px
        Spot centres (n_spots, 2) in image pixels, x first, in the order of the rows of ``adata``.
    spot_diameter_um
        Diameter of a spot in µm (Visium 55, legacy ST 100).
    spot_pitch_um
        Distance between the centres of neighbouring spots in µm (Visium 100, legacy ST 200). Together with
        ``xy_px`` it gives the scale of the image.

    Raises
    ------
    ValueError
        If the parts do not fit together, the image or the counts cannot be used, or the spots lie on no lattice.
    FileNotFoundError
        If ``image`` is a path that does not exist.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> xy = np.array([[x, y] for y in range(50, 400, 200) for x in range(50, 600, 200)])
    >>> counts = AnnData(np.ones((len(xy), 3), dtype=np.float32))
    >>> picture = np.full((400, 600, 3), 255, dtype=np.uint8)
    >>> sdata = from_spots(picture, counts, xy, spot_diameter_um=55, spot_pitch_um=100)
    >>> sorted(sdata.images), sorted(sdata.shapes), sorted(sdata.tables)
    (['image'], ['spots'], ['counts'])
    """
    centres = check_centres(xy_px, adata)
    check_spot_size(spot_diameter_um, spot_pitch_um)
    check_counts(adata, "adata")
    mpp = scale_from_lattice(lattice_of(centres), mpp=None, spot_pitch_um=spot_pitch_um)
    record = {"pitch_um": float(spot_pitch_um), "diameter_um": float(spot_diameter_um)}
    return SpatialData(
        images={"image": image_element(image)},
        shapes={"spots": ShapesModel.parse(centres, geometry=0, radius=spot_diameter_um / mpp / 2)},
        tables={"counts": spot_table(adata, centres)},
        attrs={"sphistex": {INPUT_RECORD: {"spots": record}}},
    )


def check_centres(xy_px: ArrayLike, adata: AnnData) -> NDArray[np.float64]:
    """Centres (n, 2) that belong to the rows of a table."""
    centres = np.asarray(xy_px, dtype=float)
    if centres.shape != (adata.n_obs, 2):
        raise ValueError(
            f"xy_px has the shape {centres.shape}, but adata has {adata.n_obs} rows: ({adata.n_obs}, 2) is needed"
        )
    if not np.isfinite(centres).all():
        raise ValueError(f"xy_px has {int((~np.isfinite(centres)).any(axis=1).sum())} centres that are NaN or infinite")
    return centres


def image_element(image: ImageLike | Picture) -> DataArray | DataTree:
    """The image as a lazy element, with the file's own coarser levels, or with some for viewing when it is large."""
    picture = image if isinstance(image, Picture) else open_picture(image)
    pixels = picture.levels[0]
    channels = list("rgba")[: pixels.sizes["c"]] if pixels.sizes["c"] in (3, 4) else None
    check_rgb(pixels.assign_coords(c=channels) if channels else pixels, "image")
    if len(picture.levels) > 1:
        return _pyramid(picture.levels, channels)
    levels = int(np.ceil(np.log2(max(1.0, max(pixels.sizes["y"], pixels.sizes["x"]) / _OVERVIEW_PX))))
    return Image2DModel.parse(
        pixels, c_coords=channels, scale_factors=[2] * levels or None, transformations={"global": Identity()}
    )


def _pyramid(levels: list[DataArray], channels: list[str] | None) -> DataTree:
    """Levels that exist as a multiscale element; SpatialData makes one only of levels that it computes."""
    named = {}
    for number, level in enumerate(levels):
        steps = {axis: levels[0].sizes[axis] / level.sizes[axis] for axis in ("y", "x")}
        to_global = Scale(list(steps.values()), axes=tuple(steps)) if number else Identity()
        parsed = Image2DModel.parse(level, c_coords=channels, transformations={"global": to_global})
        coords = {axis: (np.arange(level.sizes[axis]) + 0.5) * step for axis, step in steps.items()}
        named[f"scale{number}"] = Dataset({"image": parsed.assign_coords(coords)})
    return DataTree.from_dict(named)


def spot_table(adata: AnnData, centres: NDArray[np.float64], region: str = "spots") -> AnnData:
    """The counts as a table that annotates the shapes ``region``."""
    table = adata.copy()
    table.uns.pop(TableModel.ATTRS_KEY, None)
    table.obs["region"] = pd.Categorical([region] * table.n_obs)
    table.obs["spot_id"] = np.arange(table.n_obs)
    table.obsm["spatial"] = centres
    return TableModel.parse(table, region=region, region_key="region", instance_key="spot_id")
