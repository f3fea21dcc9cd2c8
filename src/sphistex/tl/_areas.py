"""Which share of each superpixel lies in which cell, nucleus or annotation: shapes exactly, labels by sampling."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex._elements import are_circles, finest
from sphistex._section import moved
from sphistex.bags import Bags
from sphistex.settings import settings
from sphistex.tl._superpixels import Superpixels

# Labels are read at so many points along a superpixel's side: as many as it has pixels of the labels, within these.
_FEWEST_POINTS, _MOST_POINTS = 8, 32
# Pixels of labels, and points, along the side of a block that is in memory at once.
_LABELS_SIDE, _POINTS_SIDE = 4096, 1024
_AREAL = (3, 6)  # polygons and multipolygons, as shapely numbers them


@dataclass(frozen=True)
class Areas:
    """Instances of an element (cells, nuclei, annotations) on the superpixels of a result.

    Parameters
    ----------
    ids
        What they are called in the element (n,).
    weights
        Share of each superpixel's area inside each instance (n, n_superpixels).
    area
        Of the whole instances, in superpixels (n,).
    centres
        Centroids on the raster (n, 2), x first; NaN of empty ones.
    """

    ids: pd.Index
    weights: sparse.csr_matrix
    area: NDArray[np.float64]
    centres: NDArray[np.float64]


def areas_of(
    sdata: SpatialData, argument: str, element_key: str, superpixels: Superpixels, coordinate_system: str | None
) -> Areas:
    """Instances of shapes or labels by name.

    Raises
    ------
    KeyError
        If there are no shapes or labels of that name.
    ValueError
        If they are empty, cannot be told apart, have no area, or do not lie on the result.

    Warns
    -----
    UserWarning
        If polygons are invalid (they are repaired), or some instances lie on no superpixel.
    """
    if element_key not in sdata.shapes and element_key not in sdata.labels:
        elsewhere = [kind for kind in ("images", "points", "tables") if element_key in getattr(sdata, kind)]
        hint = f" but in sdata.{elsewhere[0]}" if elsewhere else ""
        raise KeyError(
            f"{argument}={element_key!r} is neither in sdata.shapes {list(sdata.shapes)} nor in sdata.labels "
            f"{list(sdata.labels)}{hint}"
        )
    kind, of = ("shapes", _of_shapes) if element_key in sdata.shapes else ("labels", _of_labels)
    what = f"{kind} {element_key!r}"
    element = getattr(sdata, kind)[element_key]
    found = of(element, what, superpixels, superpixels.to_raster(element, what, coordinate_system))
    outside = np.diff(found.weights.indptr) == 0
    if outside.all():
        (left, top), (right, bottom) = np.nanmin(found.centres, 0), np.nanmax(found.centres, 0)
        raise ValueError(
            f"none of the {len(outside)} {what} lies on a superpixel of the result: they lie between column "
            f"{left:.0f}, row {top:.0f} and column {right:.0f}, row {bottom:.0f} of its raster of "
            f"{superpixels.shape[1]} × {superpixels.shape[0]}; check their transformations"
        )
    if outside.any():
        warnings.warn(
            f"{outside.sum()} of {len(outside)} {what} lie on no superpixel of the result, such as "
            f"{_some(found.ids[outside])}",
            UserWarning,
            stacklevel=3,
        )
    return found


def _some(ids: pd.Index) -> list[Any]:
    return ids[:5].tolist()


# ------------------------------------------------------------------------------------------------- shapes


def _of_shapes(shapes: Any, what: str, superpixels: Superpixels, affine: NDArray[np.float64]) -> Areas:
    if not shapes.index.is_unique:
        raise ValueError(f"{what} have duplicated index values, so that they cannot be told apart")
    if pd.api.types.is_float_dtype(shapes.index):
        raise ValueError(
            f"{what} are numbered by floats, such as {_some(shapes.index)}, which no table can refer to: make the "
            "index whole numbers or strings, as in shapes.index = shapes.index.astype(int)"
        )
    stretch = float(abs(np.linalg.det(affine[:2, :2])))
    if are_circles(shapes):
        if not (np.isfinite(radius := shapes["radius"].to_numpy(float)) & (radius > 0)).all():
            lost = shapes.index[~(radius > 0) | np.isinf(radius)]
            raise ValueError(
                f"{what}: {len(lost)} of {len(shapes)} circles have a radius that is NaN, infinite or not above 0, "
                f"such as {_some(lost)}: correct it, or leave them out"
            )
        if shapes.geometry.is_empty.any():
            raise ValueError(f"{what}: {int(shapes.geometry.is_empty.sum())} circles have no centre: leave them out")
        centres = moved(shapely.get_coordinates(shapes.geometry), affine)
        radius = radius * np.sqrt(stretch)
        bags, area = Bags.from_disks(superpixels.grid, centres, radius), np.pi * radius**2
    else:
        outlines = shapely.transform(_valid(shapes, what), lambda xy: moved(xy, affine))
        bags, area = Bags.from_polygons(superpixels.grid, outlines), np.nan_to_num(shapely.area(outlines))
        drawn = np.flatnonzero(area)
        centres = np.full((len(outlines), 2), np.nan)
        centres[drawn] = shapely.get_coordinates(shapely.centroid(outlines[drawn]))
    return Areas(shapes.index, bags.weights[:, superpixels.place], area, centres)


def _valid(shapes: Any, what: str) -> NDArray[np.object_]:
    """Polygons (n,), those that cross themselves repaired."""
    polygons = shapes.geometry.to_numpy().astype(object)
    drawn = ~(shapely.is_missing(polygons) | shapely.is_empty(polygons))
    if not drawn.any():
        raise ValueError(f"all {len(drawn)} {what} are empty: nothing says where they lie")
    other = drawn & ~np.isin(shapely.get_type_id(polygons), _AREAL)
    if other.any():
        kinds = sorted(set(shapes.geometry[other].geom_type))
        raise ValueError(
            f"{what}: {other.sum()} of {len(other)} are {', '.join(kinds)}, which have no area, such as "
            f"{_some(shapes.index[other])}: give polygons, or circles with a radius"
        )
    invalid = drawn & ~shapely.is_valid(polygons)
    if invalid.any():
        polygons[invalid] = [_areal_part(polygon) for polygon in shapely.make_valid(polygons[invalid])]
        warnings.warn(
            f"{invalid.sum()} of {len(invalid)} {what} are invalid polygons, such as {_some(shapes.index[invalid])}: "
            "repaired by shapely.make_valid",
            UserWarning,
            stacklevel=5,
        )
    return polygons


def _areal_part(geometry: Any) -> Any:
    """Polygons of what a repair made of one, without the lines that it may have left."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.multipolygons(parts[shapely.get_type_id(parts) == _AREAL[0]])


# ------------------------------------------------------------------------------------------------- labels


def _of_labels(labels: Any, what: str, superpixels: Superpixels, affine: NDArray[np.float64]) -> Areas:
    pixels = da.asarray(finest(labels).data)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"{what} are of dtype {pixels.dtype}: give whole numbers, 0 where there is nothing")
    counted = _counted(pixels)
    if counted.empty:
        raise ValueError(f"{what} are 0 everywhere: nothing is labelled")
    centres = moved(counted[["x", "y"]].to_numpy(), affine)
    area = counted["n"].to_numpy() * abs(float(np.linalg.det(affine[:2, :2])))
    weights = _sampled(pixels, counted.index.to_numpy(), superpixels, affine)
    # tables cannot refer to ids of fewer bits, such as the uint8 of small masks
    return Areas(counted.index.astype(np.int64), weights[:, superpixels.place], area, centres)


def _counted(pixels: da.Array) -> pd.DataFrame:
    """Number of pixels ``n`` and centroid ``x``, ``y`` of each label, by its id; one block after the other."""
    parts = []
    corners = list(product(*(range(0, size, _LABELS_SIDE) for size in pixels.shape)))
    for top, left in tqdm(corners, desc="counting labels", unit="block", disable=not settings.progress):
        block = pixels[top : top + _LABELS_SIDE, left : left + _LABELS_SIDE].compute()
        row, column, length, value = _runs(block, block.shape[1])
        found, run = np.unique(value, return_inverse=True)
        sums = [np.bincount(run, length * at) for at in (1.0, left + column + length / 2, top + row + 0.5)]
        parts.append(pd.DataFrame(dict(zip(("n", "x", "y"), sums, strict=True)), index=found))
    total = pd.concat(parts).groupby(level=0).sum()
    total[["x", "y"]] = total[["x", "y"]].div(total["n"], axis=0)
    return total


def _runs(values: NDArray[np.integer], width: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Runs of the same label, none longer than ``width``: row, first column, length and label; without background."""
    starts = np.ones(values.shape, dtype=bool)
    np.not_equal(values[:, 1:], values[:, :-1], out=starts[:, 1:])
    starts[:, ::width] = True
    first = np.flatnonzero(starts)
    length, value = np.diff(first, append=values.size), values.ravel()[first]
    kept = value != 0
    row, column = np.divmod(first[kept], values.shape[1])
    return row, column, length[kept], value[kept]


def _sampled(
    pixels: da.Array, ids: NDArray[np.integer], superpixels: Superpixels, affine: NDArray[np.float64]
) -> sparse.csr_matrix:
    """Share of the points of each pixel of the raster that lie in each label (n, rows * columns).

    All superpixels have the same points, so that labels that cover one share it out completely.
    """
    per_side = float(np.sqrt(abs(np.linalg.det(affine[:2, :2])))) ** -1
    n_points = int(np.clip(np.ceil(per_side - 1e-6), _FEWEST_POINTS, _MOST_POINTS))
    to_labels = np.asarray(np.linalg.inv(affine), dtype=np.float64)
    mask = superpixels.raster(np.ones(len(superpixels.place), dtype=bool), fill=False)
    size = mask.size
    label, place, count = [], [], []
    with tqdm(total=int(mask.sum()), desc="reading labels", unit="superpixel", disable=not settings.progress) as bar:
        for window in _blocks(mask, _POINTS_SIDE // n_points):
            points = _at_points(pixels, to_labels, window, n_points)
            row, column, length, value = _runs(points, n_points)
            pixel = (row // n_points + window[0].start) * superpixels.shape[1] + column // n_points + window[1].start
            pair, run = np.unique(np.searchsorted(ids, value) * size + pixel, return_inverse=True)
            label.append(pair // size)
            place.append(pair % size)
            count.append(np.bincount(run, length))
            bar.update(int(mask[window].sum()))
    entries = np.concatenate(count) / n_points**2, (np.concatenate(label), np.concatenate(place))
    return sparse.csr_matrix(entries, shape=(len(ids), size))


def _blocks(mask: NDArray[np.bool_], side: int) -> Iterator[tuple[slice, slice]]:
    """Parts of a raster in which there is something."""
    for top in range(0, mask.shape[0], side):
        for left in range(0, mask.shape[1], side):
            window = slice(top, min(top + side, mask.shape[0])), slice(left, min(left + side, mask.shape[1]))
            if mask[window].any():
                yield window


def _at_points(
    pixels: da.Array, to_labels: NDArray[np.float64], window: tuple[slice, slice], n_points: int
) -> NDArray[np.integer]:
    """Labels at the points of a part of the raster, ``n_points`` along each side of a superpixel; 0 beyond the labels.

    Where rows lie along rows, a row of points has one row of pixels, and neither is spread out.
    """
    y, x = ((np.arange(part.start * n_points, part.stop * n_points) + 0.5) / n_points for part in window)
    (xx, xy, x0), (yx, yy, y0) = to_labels[:2]
    column = np.floor(xx * x[None] + x0 + (xy * y[:, None] if abs(xy) > 1e-12 else 0)).astype(np.int64)
    row = np.floor(yy * y[:, None] + y0 + (yx * x[None] if abs(yx) > 1e-12 else 0)).astype(np.int64)
    inside = (row >= 0) & (row < pixels.shape[0]) & (column >= 0) & (column < pixels.shape[1])
    if not inside.any():
        return np.zeros(inside.shape, dtype=pixels.dtype)
    row, column = row.clip(0, pixels.shape[0] - 1), column.clip(0, pixels.shape[1] - 1)
    top, left = row.min(), column.min()
    block = pixels[top : row.max() + 1, left : column.max() + 1].compute()
    return np.where(inside, block[row - top, column - left], 0)
