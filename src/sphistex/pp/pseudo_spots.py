"""Visium spots made from what was measured at high resolution, beside that truth at 8 µm."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale
from xarray import DataArray

from sphistex._checks import check_spot_size, is_number
from sphistex._elements import INPUT_RECORD, hd_bin_um
from sphistex._scale import lattice_of
from sphistex._section import Section, affine_to_image, resolve_image, resolve_section
from sphistex.grid import Grid

logger = logging.getLogger("sphistex")

# Bins of one size differ by no more than this factor in area.
_SAME_SIZE = 1.5
# Of the largest overlap of bins or cells with a superpixel, what is rounding in the polygons' corners.
_ROUNDING = 1e-5


def pseudo_visium(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    points_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    spot_diameter_um: float = 55.0,
    spot_pitch_um: float = 100.0,
    lattice: Literal["hexagonal", "square"] = "hexagonal",
    rotation_deg: float = 0.0,
) -> SpatialData:
    """Sum a high-resolution section over the spots of a Visium slide, and keep the truth beside them.

    What was measured is first laid onto the grid of 8 µm superpixels over the image: bins of Visium HD and outlines of
    cells by the area that they share with each superpixel, so that counts are conserved; transcripts by where they
    lie. Spots are the raw sums over the superpixels whose centre lies inside the disk.

    Parameters
    ----------
    sdata
        Section with an H&E image and either bins or cell outlines with their table of counts, or transcripts (points).
        ``spatialdata_io.visium_hd`` and ``spatialdata_io.xenium`` make such objects, and :func:`sphistex.io.from_bins`
        from plain parts.
    image_key, shapes_key, table_key, coordinate_system
        Which elements; needed only where there are several.
    points_key
        Transcripts to be counted instead of bins or cells.
    mpp
        Microns per image pixel; needed where bins of a known size do not give it.
    spot_diameter_um, spot_pitch_um
        Diameter of the spots and distance between their centres in µm; of Visium by default.
    lattice
        On which the spots lie.
    rotation_deg
        By how much the lattice is turned, in degrees.

    Returns
    -------
    A new section in pixels of the image: ``images["image"]``, ``shapes["spots"]`` and ``tables["counts"]``, as
    :func:`sphistex.io.from_spots` makes them, and the truth, ``labels["truth_labels"]`` and ``tables["truth"]``
    (sparse, one row per superpixel in which anything was measured). Counts of the truth are fractions where bins or
    cells lie across superpixels. Only spots that lie wholly inside the image and on something measured are kept.

    Raises
    ------
    KeyError
        If a named element does not exist.
    ValueError
        If elements are missing, ambiguous or empty, shapes are no outlines, bins lie on no lattice or are of several
        sizes, the scale is not known, or no spot lies on the tissue.

    Warns
    -----
    UserWarning
        If cells have no outline, or an empty one: they are left out.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> import sphistex as sx
    >>> row, column = np.indices((60, 60)).reshape(2, -1)
    >>> bins = AnnData(np.ones((3600, 2), dtype=np.float32))
    >>> picture = np.full((240, 240, 3), 200, dtype=np.uint8)
    >>> fine = sx.io.from_bins(picture, bins, np.column_stack([column, row]) * 4 + 2, bin_px=4, bin_um=8)
    >>> section = sx.pp.pseudo_visium(fine)
    >>> section["truth"].shape, section["counts"].shape
    ((3600, 2), (23, 2))
    """
    check_spot_size(spot_diameter_um, spot_pitch_um)
    if lattice not in ("hexagonal", "square"):
        raise ValueError(f'lattice={lattice!r} must be "hexagonal" or "square"')
    if not is_number(rotation_deg):
        raise ValueError(f"rotation_deg={rotation_deg!r} must be a number of degrees")
    if points_key is None:
        section = resolve_section(
            sdata,
            image_key=image_key,
            shapes_key=shapes_key,
            table_key=table_key,
            coordinate_system=coordinate_system,
            mpp=mpp,
        )
        image, grid, genes = section.image, section.grid, section.table.var
        truth = _shared_out(section)
    else:
        if mpp is None:
            raise ValueError("mpp=None: transcripts do not tell the scale; pass mpp=, the microns per image pixel.")
        image_key, image, _ = resolve_image(sdata, image_key=image_key)
        grid = Grid.over_image((image.sizes["y"], image.sizes["x"]), mpp)
        truth, names = _counted(sdata, points_key, image_key, grid)
        genes = pd.DataFrame(index=names)
    centres_um = _centres(grid, spot_diameter_um, spot_pitch_um, lattice, rotation_deg)
    members = disk_members(grid, centres_um, spot_diameter_um / 2)
    measured = np.diff(truth.indptr) > 0
    on_tissue = members @ measured.astype(float) > 0
    if not on_tissue.any():
        raise ValueError(
            f"no spot of {spot_diameter_um:g} µm, {spot_pitch_um:g} µm apart, lies on anything measured: the image "
            f"{grid.shape[1] * grid.pitch_um:g} × {grid.shape[0] * grid.pitch_um:g} µm is too small, or empty."
        )
    counts = sparse.csr_matrix(members[on_tissue] @ truth)
    logger.info("%d spots with a median of %g counts", counts.shape[0], np.median(np.asarray(counts.sum(1))))
    return _section(
        image, grid, genes, counts, centres_um[on_tissue] / grid.mpp, truth, measured, spot_diameter_um, spot_pitch_um
    )


# ------------------------------------------------------------------------------------------------- truth


def _shared_out(section: Section) -> sparse.csr_matrix:
    """Counts of bins or cells (n_superpixels, n_genes), shared out by area."""
    if section.outlines_px is None:
        raise ValueError(
            f"shapes {section.shapes_key!r} are circles, which do not tell the area that was measured: pass "
            "shapes_key= of bins or of the cells' outlines, or points_key= of transcripts"
        )
    area, binned = section.radius_px**2, lattice_of(section.xy_px).kind != "irregular"
    if hd_bin_um(section.shapes_key) is not None and not binned:
        raise ValueError(
            f"shapes {section.shapes_key!r} have the name of Visium HD's bins, which gives the scale, but lie on no "
            "lattice as bins do: rename them if they are cells, or correct their places"
        )
    if binned and area.max() > _SAME_SIZE * area.min():
        raise ValueError(
            f"bins {section.shapes_key!r} are of several sizes, {np.sqrt(np.pi * area.min()) * section.mpp:.3g} to "
            f"{np.sqrt(np.pi * area.max()) * section.mpp:.3g} µm: keep those of one size"
        )
    overlap = section.bags.weights.copy()
    overlap.data[overlap.data < _ROUNDING * overlap.data.max(initial=0)] = 0
    overlap.eliminate_zeros()
    covered = np.asarray(overlap.sum(1)).ravel()
    share = sparse.diags(1 / np.maximum(covered, 1e-300)) @ overlap
    return sparse.csr_matrix(share.T @ sparse.csr_matrix(section.table.X))


def _counted(
    sdata: SpatialData, points_key: str, image_key: str, grid: Grid
) -> tuple[sparse.csr_matrix, Sequence[str]]:
    """Transcripts per superpixel and gene, (n_superpixels, n_genes), and the genes; one partition at a time."""
    if points_key not in sdata.points:
        raise KeyError(f"points_key={points_key!r} is not in sdata.points: {list(sdata.points)}")
    points = sdata.points[points_key]
    column = points.attrs.get("spatialdata_attrs", {}).get("feature_key")
    if column is None:
        raise ValueError(f"points {points_key!r} do not say which gene they are: they have no feature_key")
    affine = affine_to_image(sdata, points, image_key, f"points {points_key!r}")
    names = pd.Index([], dtype=object)
    counts = sparse.csr_matrix((grid.size, 0), dtype=np.float32)
    for part in points[["x", "y", column]].partitions:
        table = part.compute()
        xy = table[["x", "y"]].to_numpy(float) @ affine[:2, :2].T + affine[:2, 2]
        x, y = np.floor(xy / grid.pitch_px).astype(np.int64).T
        inside = (x >= 0) & (x < grid.shape[1]) & (y >= 0) & (y < grid.shape[0])
        of_part, seen = pd.factorize(table[column].astype(str).to_numpy()[inside])
        names = names.append(pd.Index(seen).difference(names, sort=False))
        gene = names.get_indexer(seen)[of_part]
        place, ones = y[inside] * grid.shape[1] + x[inside], np.ones(len(gene), np.float32)
        counts.resize(grid.size, len(names))
        counts += sparse.csr_matrix((ones, (place, gene)), shape=counts.shape)
    if not len(names):
        raise ValueError(f"no transcript of {points_key!r} lies on the image: check the transformations")
    return counts, list(names)


# ------------------------------------------------------------------------------------------------- spots


def _centres(grid: Grid, diameter_um: float, pitch_um: float, lattice: str, rotation_deg: float) -> NDArray[np.float64]:
    """Centres (n, 2) in µm, x first, of the spots that lie wholly on the grid; the first in its top-left corner."""
    size = np.array(grid.shape[::-1]) * grid.pitch_um
    reach = int(np.ceil(2 * np.hypot(*size) / pitch_um)) + 1
    row, column = np.indices((2 * reach + 1, 2 * reach + 1)).reshape(2, -1) - reach
    if lattice == "hexagonal":
        steps = np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])
    else:
        steps = np.column_stack([column, row]).astype(float)
    turn = np.deg2rad(rotation_deg)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centres = pitch_um * steps @ rotation + diameter_um / 2
    inside = ((centres >= diameter_um / 2 - 1e-9) & (centres <= size - diameter_um / 2 + 1e-9)).all(1)
    return centres[inside]


def disk_members(grid: Grid, centres_um: NDArray[np.float64], radius_um: float) -> sparse.csr_matrix:
    """Which superpixels have their centre in which disk, (n_spots, n_superpixels) of ones: sums of counts are raw."""
    reach = int(np.ceil(radius_um / grid.pitch_um)) + 1
    offset = np.arange(-reach, reach + 1)
    column, row = np.floor(centres_um / grid.pitch_um).astype(np.int64).T
    rows, columns = np.broadcast_arrays(row[:, None, None] + offset[:, None], column[:, None, None] + offset)
    away = np.stack([columns + 0.5, rows + 0.5], -1) * grid.pitch_um - centres_um[:, None, None]
    inside = (away**2).sum(-1) <= radius_um**2
    inside &= (rows >= 0) & (rows < grid.shape[0]) & (columns >= 0) & (columns < grid.shape[1])
    index = (rows * grid.shape[1] + columns)[inside]
    indptr = np.concatenate([[0], np.cumsum(inside.sum((1, 2)))])
    return sparse.csr_matrix((np.ones(len(index)), index, indptr), shape=(len(centres_um), grid.size))


# ----------------------------------------------------------------------------------------------- elements


def _section(
    image: DataArray,
    grid: Grid,
    genes: pd.DataFrame,
    counts: sparse.csr_matrix,
    xy_px: NDArray[np.float64],
    truth: sparse.csr_matrix,
    measured: NDArray[np.bool_],
    diameter_um: float,
    pitch_um: float,
) -> SpatialData:
    pixels = {"global": Identity()}
    ids = np.zeros(grid.shape, dtype=np.int32)
    ids.ravel()[measured] = np.arange(1, measured.sum() + 1)
    row, column = np.unravel_index(np.flatnonzero(measured), grid.shape)
    fine = _table(truth[measured], genes, "truth_labels", np.arange(1, len(row) + 1), grid.centres_px(row, column))
    fine.obs["array_row"], fine.obs["array_col"] = row, column
    fine.obs_names = [f"truth-{i}x{j}" for i, j in zip(row, column, strict=True)]
    spots = _table(counts, genes, "spots", np.arange(len(xy_px)), xy_px)
    return SpatialData(
        images={
            "image": Image2DModel.parse(
                DataArray(image.data, dims=("c", "y", "x")), c_coords=["r", "g", "b"], transformations=pixels
            )
        },
        labels={
            "truth_labels": Labels2DModel.parse(
                ids, dims=("y", "x"), transformations={"global": Scale([grid.pitch_px] * 2, axes=("x", "y"))}
            )
        },
        shapes={
            "spots": ShapesModel.parse(xy_px, geometry=0, radius=diameter_um / grid.mpp / 2, transformations=pixels)
        },
        tables={"counts": spots, "truth": fine},
        attrs={"sphistex": {INPUT_RECORD: {"spots": {"pitch_um": float(pitch_um), "diameter_um": float(diameter_um)}}}},
    )


def _table(
    values: sparse.csr_matrix, genes: pd.DataFrame, region: str, ids: NDArray[np.integer], xy_px: NDArray[np.float64]
) -> ad.AnnData:
    key = "spot_id" if region == "spots" else "instance_id"
    obs = pd.DataFrame({"region": pd.Categorical([region] * len(ids)), key: ids}, index=[f"{region}-{i}" for i in ids])
    table = ad.AnnData(values.astype(np.float32), obs=obs, var=pd.DataFrame(index=genes.index.astype(str)))
    table.obsm["spatial"] = np.asarray(xy_px, dtype=float)
    return TableModel.parse(table, region=region, region_key="region", instance_key=key)
