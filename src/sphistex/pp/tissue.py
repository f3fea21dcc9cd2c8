"""Which superpixels are tissue: rough where a section lies, smooth where the slide is bare, whatever its colour."""

from __future__ import annotations

import logging
import warnings
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from skimage.morphology import (
    isotropic_closing,
    isotropic_dilation,
    isotropic_erosion,
    remove_small_holes,
    remove_small_objects,
)
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.models import Labels2DModel
from spatialdata.transformations import Scale, Sequence
from xarray import DataArray

from sphistex._readable import readable
from sphistex._section import affine_to_image, has_spots, recorded_mpp, resolve_image, resolve_spots
from sphistex._store import add_element, check_free
from sphistex.grid import SUPERPIXEL_UM, Grid

logger = logging.getLogger("sphistex")

Mask: TypeAlias = "str | ArrayLike | DataArray"

# Texture is measured on the coarsest level of the image that is still this fine (µm per pixel).
_LEVEL_MPP = 1.0
_BLOCK_PX = 1024
# Grey levels: texture below one is rounding; bare glass has at most this much, tissue at least three times more.
_MIN_SD, _MAX_BACKGROUND_SD, _MIN_CONTRAST = 1.0, 8.0, 3.0
# Grey level of bare glass at the least: what is as smooth and darker may be stained.
_LEAST_GLASS = 200.0
# Smoothing by one superpixel carries the texture of a border two superpixels outwards.
_SMOOTHING, _REACH = 1.0, 2
# Fat cells are smooth inside and this wide. Islands and holes up to squares of these sides are debris and lumina.
_FAT_CELL_UM, _SMALLEST_ISLAND_UM, _LARGEST_HOLE_UM = 80.0, 100.0, 200.0


def tissue_mask(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    coordinate_system: str | None = None,
    mask: Mask | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
    key_added: str = "tissue",
    overwrite: bool = False,
) -> None:
    """Add a labels element that says which superpixels are tissue (1) and which are not (0).

    Tissue is rough and bare glass is smooth, whatever its colour: the standard deviation of the pixels in and around
    each superpixel is divided in two by Otsu's threshold on its logarithm. An image without clearly smoother, brighter
    parts is taken to be tissue all over, unless all of it is smooth and bright: then there is none. The shares of
    tissue and of spots on it are logged (logger ``"sphistex"``).

    Parameters
    ----------
    sdata
        SpatialData with an H&E image.
    image_key, shapes_key, coordinate_system
        Which elements; needed only where there are several.
    mask
        Your own mask: an array with one value per superpixel or per image pixel, or the name of a labels or shapes
        element. What is not 0, or lies inside a shape, is tissue.
    mpp
        Microns per image pixel; needed where there are no spots to derive it from, and
        :func:`sphistex.io.read_image` has not noted it.
    spot_pitch_um
        Distance between neighbouring spots in µm, as in :func:`microns_per_pixel`.
    key_added
        Name of the new element. It has one pixel per superpixel of 8 µm, and the image's coordinate systems.
    overwrite
        Replace an element of that name.

    Raises
    ------
    KeyError
        If a named element does not exist.
    ValueError
        If the image cannot be used, its scale is not known, ``mask`` does not fit it or is empty, or ``key_added``
        exists.
    OSError
        If the image cannot be read.

    Warns
    -----
    UserWarning
        If fewer than half of the spots lie on tissue.

    References
    ----------
    Otsu, N. A threshold selection method from gray-level histograms. IEEE Trans. SMC 9, 62–66 (1979).

    Examples
    --------
    >>> from spatialdata.models import Image2DModel
    >>> picture = np.full((3, 1600, 1600), 240, dtype=np.uint8)
    >>> picture[:, 400:1200, 400:1200] = np.random.default_rng(0).integers(90, 220, (3, 800, 800))
    >>> sdata = SpatialData(images={"he": Image2DModel.parse(picture)})
    >>> tissue_mask(sdata, mpp=0.5)
    >>> tissue = sdata.labels["tissue"].to_numpy()
    >>> tissue.shape, int(tissue[50, 50]), int(tissue[5, 5])
    ((100, 100), 1, 0)
    """
    check_free(sdata, "labels", key_added, overwrite=overwrite)
    xy_px = np.empty((0, 2))
    if has_spots(sdata):
        spots = resolve_spots(
            sdata,
            image_key=image_key,
            shapes_key=shapes_key,
            coordinate_system=coordinate_system,
            mpp=mpp,
            spot_pitch_um=spot_pitch_um,
        )
        image_key, mpp, xy_px = spots.image_key, spots.mpp, spots.xy_px
    elif mpp is None:
        mpp = recorded_mpp(sdata, image_key)
    if mpp is None:
        raise ValueError("there are no spots to derive the scale from; pass mpp=, the microns per image pixel")
    image_key, image, transforms = resolve_image(sdata, image_key=image_key)
    if not 0 < mpp <= SUPERPIXEL_UM:
        raise ValueError(
            f"image {image_key!r} with mpp={mpp:g}: a pixel must not be larger than a superpixel of "
            f"{SUPERPIXEL_UM:g} µm; take a finer image, or correct mpp="
        )
    grid = Grid.over_image((image.sizes["y"], image.sizes["x"]), mpp)
    if mask is None:
        with readable(f"image {image_key!r}"):
            moments = _moments(_coarse_level(sdata.images[image_key], grid.mpp), grid)
        tissue = _detect(moments, grid)
    else:
        tissue = _from_user(sdata, mask, image_key, image, grid)
    _report(tissue, grid, xy_px, image_key)
    to_image = Scale([grid.pitch_px, grid.pitch_px], axes=("x", "y"))
    element = Labels2DModel.parse(
        DataArray(tissue.astype(np.uint8), dims=("y", "x")),
        transformations={name: Sequence([to_image, transform]) for name, transform in transforms.items()},
    )
    add_element(sdata, "labels", key_added, element, overwrite=overwrite)


def on_tissue(tissue: NDArray[Any], grid: Grid, xy_px: ArrayLike) -> NDArray[np.bool_]:
    """Which points (n, 2), in image pixels, lie on tissue superpixels of a mask on the grid."""
    columns, rows = np.floor(np.asarray(xy_px, dtype=float) / grid.pitch_px).astype(int).T
    inside = (rows >= 0) & (rows < grid.shape[0]) & (columns >= 0) & (columns < grid.shape[1])
    return inside & (tissue[rows.clip(0, grid.shape[0] - 1), columns.clip(0, grid.shape[1] - 1)] > 0)


def _report(tissue: NDArray[np.bool_], grid: Grid, xy_px: NDArray[np.float64], image_key: str) -> None:
    if not tissue.any():
        raise ValueError(
            f"the mask of image {image_key!r} is empty: no superpixel is tissue; pass your own as mask= of "
            "sphistex.pp.tissue_mask if there is some"
        )
    if not len(xy_px):
        logger.info("image %r: %.1f %% of the area is tissue", image_key, 100 * tissue.mean())
        return
    share = on_tissue(tissue, grid, xy_px).mean()
    message = f"image {image_key!r}: {tissue.mean():.1%} of the area is tissue; {share:.1%} of the spots lie on it"
    logger.info(message)
    if share < 0.5:
        warnings.warn(f"{message}. Is the mask right? Look at it, or pass your own as mask=", UserWarning, stacklevel=3)


# ------------------------------------------------------------------------------------------- from the image


def _detect(moments: NDArray[np.float32], grid: Grid) -> NDArray[np.bool_]:
    """Tissue on the grid, by texture."""
    mean = np.stack([gaussian_filter(plane, _SMOOTHING) for plane in moments[:3]])
    variance = gaussian_filter(moments[3], _SMOOTHING) - (mean**2).mean(axis=0)
    roughness = np.log10(np.sqrt(np.maximum(variance, _MIN_SD**2)))
    brightness = mean.mean(axis=0)
    if roughness.max() <= np.log10(_MAX_BACKGROUND_SD) and np.median(brightness) > _LEAST_GLASS:
        return np.zeros(grid.shape, dtype=bool)  # bare glass all over
    if np.ptp(roughness) == 0:
        return np.ones(grid.shape, dtype=bool)
    rough = roughness > threshold_otsu(roughness)
    background, contrast = np.median(roughness[~rough]), np.median(roughness[rough]) - np.median(roughness[~rough])
    if (
        background > np.log10(_MAX_BACKGROUND_SD)
        or contrast < np.log10(_MIN_CONTRAST)
        or np.median(brightness[~rough]) < np.median(brightness[rough])
    ):
        logger.info("no part is clearly smoother and brighter than the rest: the image is taken to be tissue all over")
        return np.ones(grid.shape, dtype=bool)
    dark = brightness < np.median(brightness[rough])  # smooth but stained: blood, mucus, necrosis
    return _tidy(rough | dark, grid.pitch_um)


def _tidy(tissue: NDArray[np.bool_], pitch_um: float) -> NDArray[np.bool_]:
    """Bridge fat cells, take back what smoothing added to the border, cut whiskers, drop debris, fill small holes."""
    bridge = round(_FAT_CELL_UM / 2 / pitch_um)
    padded = np.pad(tissue, bridge + 2 * _REACH, mode="edge")
    closed = isotropic_closing(padded, bridge)
    opened = isotropic_dilation(isotropic_erosion(closed, 2 * _REACH), _REACH)
    tissue = opened[bridge + 2 * _REACH : -bridge - 2 * _REACH, bridge + 2 * _REACH : -bridge - 2 * _REACH]
    island, hole = (round((side / pitch_um) ** 2) for side in (_SMALLEST_ISLAND_UM, _LARGEST_HOLE_UM))
    return remove_small_holes(remove_small_objects(tissue, max_size=island), max_size=hole)


def _coarse_level(element: Any, mpp: float) -> DataArray:
    """The coarsest level that still shows texture."""
    if isinstance(element, DataArray):
        return element
    levels = list(get_pyramid_levels(element))
    full = levels[0].sizes["x"]
    return next((level for level in reversed(levels) if mpp * full / level.sizes["x"] <= _LEVEL_MPP), levels[0])


def _moments(image: DataArray, grid: Grid) -> NDArray[np.float32]:
    """Mean of each colour and mean square over colours of each superpixel, (4, rows, columns), block by block."""
    rows, columns = (_edges(image.sizes[axis], count) for axis, count in zip("yx", grid.shape, strict=True))
    pixels = da.asarray(image.transpose("c", "y", "x").data)[:3]
    blocks = pixels.rechunk((3, *(tuple(np.diff(edges[_corners(edges)])) for edges in (rows, columns))))
    chunks = ((4,), *(tuple(np.diff(_corners(edges))) for edges in (rows, columns)))
    moments = blocks.map_blocks(_block_moments, rows=rows, columns=columns, chunks=chunks, dtype=np.float32)
    return np.asarray(moments.compute())


def _edges(size_px: int, count: int) -> NDArray[np.int64]:
    """First pixel of each of ``count`` superpixels, and the end of the last."""
    return np.round(np.linspace(0, size_px, count + 1)).astype(np.int64)


def _corners(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Superpixels at which a block starts, and the last end."""
    step = max(1, int(_BLOCK_PX / (edges[-1] / (len(edges) - 1))))
    return np.append(np.arange(0, len(edges) - 1, step), len(edges) - 1)


def _block_moments(
    pixels: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64], block_info: Any = None
) -> NDArray[np.float32]:
    _, (top, bottom), (left, right) = block_info[0]["array-location"]
    rows = rows[(rows >= top) & (rows <= bottom)] - top
    columns = columns[(columns >= left) & (columns <= right)] - left
    values = pixels.astype(np.float32)
    planes = np.concatenate([values, np.einsum("cyx,cyx->yx", values, values)[None] / 3])
    sums = np.add.reduceat(np.add.reduceat(planes, rows[:-1], axis=1), columns[:-1], axis=2)
    return np.asarray(sums / (np.diff(rows)[:, None] * np.diff(columns)), dtype=np.float32)


# --------------------------------------------------------------------------------------- the user's own mask


def _from_user(sdata: SpatialData, mask: Mask, image_key: str, image: DataArray, grid: Grid) -> NDArray[np.bool_]:
    if isinstance(mask, str):
        if mask in sdata.labels:
            return _from_labels(sdata, mask, image_key, grid)
        if mask in sdata.shapes:
            return _from_shapes(sdata, mask, image_key, grid)
        raise KeyError(
            f"mask={mask!r} is neither in sdata.labels {list(sdata.labels)} nor sdata.shapes {list(sdata.shapes)}"
        )
    values = np.asarray(mask)
    if values.shape == grid.shape:
        return values != 0
    if values.shape == (image.sizes["y"], image.sizes["x"]):
        rows, columns = (_edges(size, count) for size, count in zip(values.shape, grid.shape, strict=True))
        inside = np.add.reduceat(np.add.reduceat((values != 0).astype(np.int64), rows[:-1], 0), columns[:-1], 1)
        return 2 * inside >= np.diff(rows)[:, None] * np.diff(columns)
    raise ValueError(
        f"mask has the shape {values.shape}; it must be that of the superpixels {grid.shape} or that of the image "
        f"{image_key!r} ({image.sizes['y']}, {image.sizes['x']})"
    )


def _centres(grid: Grid) -> NDArray[np.float64]:
    rows, columns = np.indices(grid.shape).reshape(2, -1)
    return grid.centres_px(rows, columns)


def _from_labels(sdata: SpatialData, name: str, image_key: str, grid: Grid) -> NDArray[np.bool_]:
    """The label under the centre of each superpixel."""
    element = sdata.labels[name]
    labels = element if isinstance(element, DataArray) else get_pyramid_levels(element, n=0)
    to_labels = np.linalg.inv(affine_to_image(sdata, element, image_key, f"mask={name!r}"))
    columns, rows = np.floor(_centres(grid) @ to_labels[:2, :2].T + to_labels[:2, 2]).astype(int).T
    inside = (rows >= 0) & (rows < labels.sizes["y"]) & (columns >= 0) & (columns < labels.sizes["x"])
    tissue = np.zeros(grid.size, dtype=bool)
    tissue[inside] = np.asarray(labels.transpose("y", "x").data != 0)[rows[inside], columns[inside]]
    return tissue.reshape(grid.shape)


def _from_shapes(sdata: SpatialData, name: str, image_key: str, grid: Grid) -> NDArray[np.bool_]:
    """Superpixels whose centre lies inside a polygon or circle."""
    shapes = sdata.shapes[name]
    outlines = shapes.geometry.buffer(shapes["radius"]) if "radius" in shapes else shapes.geometry
    area = outlines.union_all()
    to_shapes = np.linalg.inv(affine_to_image(sdata, shapes, image_key, f"mask={name!r}"))
    xy = _centres(grid) @ to_shapes[:2, :2].T + to_shapes[:2, 2]
    shapely.prepare(area)
    return np.asarray(shapely.contains_xy(area, xy)).reshape(grid.shape)
