"""A SpatialData section from a picture and a table of square bins, such as those of Visium HD."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import shapely
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

from sphistex._checks import check_counts, is_number
from sphistex.io.images import ImageLike
from sphistex.io.spots import check_centres, image_element, spot_table

# A bin may lie beside its place on the lattice by this share of its side, such as by rounding.
_ASIDE = 0.1


def from_bins(image: ImageLike, adata: AnnData, xy_px: ArrayLike, *, bin_px: float, bin_um: int) -> SpatialData:
    """Make a SpatialData section from an H&E image and counts of square bins whose sides lie along the image's.

    The result holds the image ``"image"``, the squares ``"square_008um"`` (named as spatialdata-io names bins of 8 µm)
    and the table ``"counts"``, in the coordinate system ``"global"``, whose unit is one image pixel.

    Parameters
    ----------
    image
        As in :func:`from_spots`.
    adata
        Raw counts (n_bins, n_genes).
    xy_px
        Centres of the bins (n_bins, 2) in image pixels, x first, in the order of the rows of ``adata``.
    bin_px, bin_um
        Side of a bin in image pixels and in whole µm; together they give the scale of the image.

    Raises
    ------
    ValueError
        If the parts do not fit together, the image or the counts cannot be used, or the bins do not lie on a lattice of
        their own size.

    Examples
    --------
    >>> from anndata import AnnData
    >>> xy = np.array([[x, y] for y in range(8, 320, 16) for x in range(8, 320, 16)])
    >>> counts = AnnData(np.ones((len(xy), 3), dtype=np.float32))
    >>> sdata = from_bins(np.full((320, 320, 3), 255, dtype=np.uint8), counts, xy, bin_px=16, bin_um=8)
    >>> sorted(sdata.shapes), sorted(sdata.tables)
    (['square_008um'], ['counts'])
    """
    centres = check_centres(xy_px, adata)
    if not (is_number(bin_px) and bin_px > 0):
        raise ValueError(f"bin_px={bin_px!r} must be a positive number of pixels")
    if not (is_number(bin_um) and int(bin_um) == bin_um and bin_um >= 1):
        raise ValueError(f"bin_um={bin_um!r} must be a whole number of microns, such as 8")
    _check_lattice(centres, bin_px)
    check_counts(adata, "adata")
    half, region = bin_px / 2, f"square_{int(bin_um):03d}um"
    x, y = centres.T
    squares = gpd.GeoDataFrame(geometry=shapely.box(x - half, y - half, x + half, y + half))
    return SpatialData(
        images={"image": image_element(image)},
        shapes={region: ShapesModel.parse(squares, transformations={"global": Identity()})},
        tables={"counts": spot_table(adata, centres, region)},
    )


def _check_lattice(centres: NDArray[np.float64], bin_px: float) -> None:
    """Refuse bins that are not squares side by side, as then the scale of the image would be wrong."""
    if len(centres) < 2:
        return
    steps = (centres - centres.min(0)) / bin_px
    places = np.rint(steps)
    if len(np.unique(places, axis=0)) < len(places):
        raise ValueError(f"bins of {bin_px:g} px overlap: check bin_px and the order of x and y in xy_px")
    if (aside := np.abs(steps - places).max()) > _ASIDE:
        raise ValueError(
            f"xy_px does not lie on a lattice of bin_px={bin_px:g} px along the image's sides: a bin is {aside:.2g} of "
            "its side off; check bin_px, or give centres that are neither turned nor shifted each by its own"
        )
    apart = float(KDTree(steps).query(steps, k=2)[0][:, 1].min())
    if apart > 1 + 2 * _ASIDE:
        raise ValueError(
            f"no two bins of xy_px are less than {apart * bin_px:.4g} px apart, but bin_px={bin_px:g}: neighbours must "
            "touch, so that bin_px must be their distance in pixels"
        )
