"""Spots and truth hold what was measured, where it was measured."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Literal

import anndata as ad
import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity

import sphistex as sx
from sphistex._section import resolve_section

SIDE, PX = 48, 4  # superpixels of 8 µm a side, pixels (2 µm) a superpixel
PICTURE = np.full((SIDE * PX, SIDE * PX, 3), 200, np.uint8)


def bins(counts: NDArray, size: int = 1) -> SpatialData:
    """Bins of ``size`` superpixels."""
    row, column = np.indices(counts.shape[:2]).reshape(2, -1)
    xy = (np.column_stack([column, row]) + 0.5) * PX * size
    table = AnnData(sparse.csr_matrix(counts.reshape(-1, counts.shape[2]).astype(np.float32)))
    return sx.io.from_bins(PICTURE, table, xy, bin_px=PX * size, bin_um=8 * size)


@pytest.fixture
def counts() -> NDArray:
    counts = np.random.default_rng(0).poisson(2.0, (SIDE, SIDE, 3))
    counts[:6, :20] = 0
    return counts


def on_grid(section: SpatialData, name: str = "truth") -> NDArray:
    table = section[name]
    out = np.zeros((SIDE, SIDE, table.n_vars))
    out[table.obs["array_row"], table.obs["array_col"]] = table.X.toarray()
    return out


def brute_force(counts: NDArray, xy_px: NDArray, diameter_um: float) -> NDArray:
    centres = (np.indices(counts.shape[:2]).reshape(2, -1).T[:, ::-1] + 0.5) * PX
    inside = np.linalg.norm(centres[None] - xy_px[:, None], axis=2) <= diameter_um / 2 / 2.0
    return inside @ counts.reshape(-1, counts.shape[2])


@pytest.mark.parametrize(("lattice", "neighbours"), [("hexagonal", 6), ("square", 4)])
@pytest.mark.parametrize("rotation_deg", [0.0, 17.0])
@pytest.mark.parametrize(("diameter_um", "pitch_um"), [(55.0, 100.0), (40.0, 64.0)])
def test_spots_are_raw_sums_over_disks_on_the_lattice(
    counts: NDArray,
    lattice: Literal["hexagonal", "square"],
    neighbours: int,
    rotation_deg: float,
    diameter_um: float,
    pitch_um: float,
) -> None:
    made = sx.pp.pseudo_visium(
        bins(counts),
        lattice=lattice,
        rotation_deg=rotation_deg,
        spot_diameter_um=diameter_um,
        spot_pitch_um=pitch_um,
    )
    np.testing.assert_array_equal(on_grid(made), counts)
    xy = made["counts"].obsm["spatial"]
    np.testing.assert_array_equal(made["counts"].X.toarray(), brute_force(counts, xy, diameter_um))
    assert (xy >= diameter_um / 4 - 1e-6).all(), "wholly inside the image"
    assert (xy <= SIDE * PX - diameter_um / 4 + 1e-6).all()
    distance, other = KDTree(xy).query(xy, k=neighbours + 1)
    complete = np.isclose(distance[:, 1:], pitch_um / 2).all(1)
    assert complete.any(), "spots in the middle have all their neighbours"
    bond = xy[other[complete, 1:]] - xy[complete][:, None]
    angle = np.rad2deg(np.arctan2(bond[..., 1], bond[..., 0])) - rotation_deg
    np.testing.assert_allclose(np.abs((angle + 1) % (360 / neighbours)), 1, atol=1e-4)


def test_the_result_is_a_section_with_its_scale_and_picture(counts: NDArray) -> None:
    made = sx.pp.pseudo_visium(bins(counts))
    section = resolve_section(made, table_key="counts")
    assert section.mpp == pytest.approx(2.0)
    assert section.pitch_um == pytest.approx(100)
    np.testing.assert_allclose(section.radius_px * section.mpp, 27.5)
    np.testing.assert_array_equal(made["image"].to_numpy(), PICTURE.transpose(2, 0, 1))
    ids = made["truth_labels"].to_numpy()
    np.testing.assert_array_equal(ids > 0, counts.sum(-1) > 0)
    np.testing.assert_array_equal(ids[ids > 0], made["truth"].obs["instance_id"])


@pytest.mark.parametrize("angle", [0.0, 23.0])
@pytest.mark.parametrize("size", [1, 2])
def test_counts_are_conserved_wherever_the_bins_lie(counts: NDArray, size: int, angle: float) -> None:
    coarse = counts[: SIDE // size, : SIDE // size].copy()
    away = np.linalg.norm(np.indices(coarse.shape[:2]) - (len(coarse) - 1) / 2, axis=0) > 0.45 * len(coarse)
    coarse[away] = 0  # what is turned out of the picture holds nothing
    sdata = bins(coarse, size)
    turn, middle = np.deg2rad(angle), SIDE * PX / 2
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array(
        [[cos, -sin, middle - cos * middle + sin * middle], [sin, cos, middle - sin * middle - cos * middle]]
    )
    shapes = next(iter(sdata.shapes))
    turned = Affine(np.vstack([matrix, [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y"))
    sdata.shapes[shapes].attrs["transform"] = {"global": turned}
    kept = coarse.reshape(-1, 3).sum(1) > 0
    sdata.shapes[shapes] = sdata.shapes[shapes][kept]
    sdata.tables["counts"] = sdata.tables["counts"][kept].copy()
    made = sx.pp.pseudo_visium(sdata)
    np.testing.assert_allclose(made["truth"].X.sum(0), coarse.sum((0, 1))[None], rtol=1e-5)
    assert made["truth"].X.min() >= 0
    if size == 1 and not angle:
        np.testing.assert_array_equal(on_grid(made), coarse)


def cells(polygons: list[shapely.Polygon], values: NDArray) -> SpatialData:
    table = AnnData(values.astype(np.float32), var=pd.DataFrame(index=[f"g{i}" for i in range(values.shape[1])]))
    table.obs = pd.DataFrame({"region": pd.Categorical(["cells"] * len(values)), "cell": np.arange(len(values))},
                             index=[f"c{i}" for i in range(len(values))])  # fmt: skip
    image = Image2DModel.parse(PICTURE.transpose(2, 0, 1), dims=("c", "y", "x"), transformations={"global": Identity()})
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=polygons), transformations={"global": Identity()})
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="cell")
    return SpatialData(images={"image": image}, shapes={"cells": shapes}, tables={"table": table})


def test_cells_are_shared_out_by_area() -> None:
    rng = np.random.default_rng(0)
    corner = shapely.box(11 * PX - 1, 10 * PX - 1, 11 * PX + 3, 10 * PX + 1)  # 1:3 across, 1:1 down
    others = [shapely.Point(xy).buffer(5) for xy in rng.uniform(30, SIDE * PX - 30, (40, 2))]
    values = rng.poisson(3.0, (41, 2))
    values[0], values[1:, 1] = (0, 16), 0
    made = sx.pp.pseudo_visium(cells([corner, *others], values), mpp=2.0)
    truth = on_grid(made)
    np.testing.assert_allclose(truth[9:11, 10:12, 1], [[2, 6], [2, 6]], rtol=1e-5)
    np.testing.assert_allclose(truth.sum((0, 1)), values.sum(0), rtol=1e-5)


@pytest.mark.parametrize("partitions", [1, 3])
def test_transcripts_are_counted_where_they_lie(partitions: int) -> None:
    rng = np.random.default_rng(0)
    xy, gene = rng.uniform(-20, SIDE * PX + 20, (5000, 2)), rng.choice(["a", "b", "c"], 5000)
    frame = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "feature_name": pd.Categorical(gene)})
    points = PointsModel.parse(
        dd.from_pandas(frame, npartitions=partitions), coordinates={"x": "x", "y": "y"}, feature_key="feature_name"
    )
    image = Image2DModel.parse(PICTURE.transpose(2, 0, 1), dims=("c", "y", "x"))
    sdata = SpatialData(images={"image": image}, points={"transcripts": points})
    made = sx.pp.pseudo_visium(sdata, points_key="transcripts", mpp=2.0)
    truth, names = on_grid(made), list(made["truth"].var_names)
    assert sorted(names) == ["a", "b", "c"]
    edges = np.arange(SIDE + 1) * PX
    for i, name in enumerate(names):
        x, y = xy[gene == name].T
        expected, _, _ = np.histogram2d(y, x, bins=[edges, edges])
        np.testing.assert_array_equal(truth[..., i], expected)
    np.testing.assert_array_equal(made["counts"].X.toarray(), brute_force(truth, made["counts"].obsm["spatial"], 55))
    with pytest.raises(KeyError, match="points_key='none'"):
        sx.pp.pseudo_visium(sdata, points_key="none", mpp=2.0)
    with pytest.raises(ValueError, match="mpp=None"):
        sx.pp.pseudo_visium(sdata, points_key="transcripts")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spot_diameter_um": 0}, "spot_diameter_um=0 must be a positive"),
        ({"spot_diameter_um": 120}, "spots would overlap"),
        ({"lattice": "round"}, "lattice='round'"),
        ({"rotation_deg": np.nan}, "rotation_deg=nan"),
        ({"spot_diameter_um": 390, "spot_pitch_um": 400}, "no spot of 390 µm"),
    ],
)
def test_arguments_without_meaning_are_refused(counts: NDArray, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sx.pp.pseudo_visium(bins(counts), **changes)


def test_sources_without_area_or_of_several_sizes_are_refused(counts: NDArray) -> None:
    section = sx.pp.pseudo_visium(bins(counts))
    del section.tables["truth"]
    with pytest.raises(ValueError, match="'spots' are circles.*outlines"):
        sx.pp.pseudo_visium(section)
    mixed = bins(counts)
    shapes = next(iter(mixed.shapes))
    geometry = mixed.shapes[shapes].geometry.copy()
    geometry.iloc[0] = geometry.iloc[0].buffer(PX / 2, join_style="mitre")
    mixed.shapes[shapes] = ShapesModel.parse(gpd.GeoDataFrame(geometry=geometry))
    with pytest.raises(ValueError, match="of several sizes, 8 to 16 µm"):
        sx.pp.pseudo_visium(mixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bin_px": 0}, "bin_px=0"),
        ({"bin_um": 7.5}, "bin_um=7.5 must be a whole number"),
        ({"bin_px": 8.0}, "overlap"),
    ],
)
def test_bins_that_fit_nothing_are_refused(changes: dict, message: str) -> None:
    xy = np.array([[x, y] for y in range(2, 40, 4) for x in range(2, 40, 4)])
    with pytest.raises(ValueError, match=message):
        sx.io.from_bins(PICTURE, AnnData(np.ones((len(xy), 2), np.float32)), xy, **{"bin_px": 4, "bin_um": 8} | changes)


@pytest.mark.parametrize(
    ("bin_px", "shift", "message"),
    [
        (8.0, 0.0, "no two bins of xy_px are less than 16 px apart, but bin_px=8"),
        (12.8, 0.0, "does not lie on a lattice of bin_px=12.8 px"),
        (16.0, 3.0, "does not lie on a lattice of bin_px=16 px"),
    ],
)
def test_bins_that_are_not_squares_side_by_side_are_refused(bin_px: float, shift: float, message: str) -> None:
    xy = np.array([[x, y] for y in range(8, 192, 16) for x in range(8, 192, 16)], dtype=float)
    jitter = np.random.default_rng(0).uniform(-1, 1, xy.shape)
    table = AnnData(np.ones((len(xy), 2), np.float32))
    sx.io.from_bins(PICTURE, table, xy + 0.25 * jitter, bin_px=16, bin_um=8)  # rounding does no harm
    with pytest.raises(ValueError, match=message):
        sx.io.from_bins(PICTURE, table, xy + shift * jitter, bin_px=bin_px, bin_um=8)


def test_cells_that_bear_the_name_of_bins_are_refused() -> None:
    rng = np.random.default_rng(0)
    sdata = cells([shapely.Point(xy).buffer(2) for xy in rng.uniform(9, 183, (300, 2))], np.ones((300, 2)))
    sdata.shapes["square_008um"] = sdata.shapes.pop("cells")
    sdata.tables["table"].obs["region"] = pd.Categorical(["square_008um"] * 300)
    sdata.set_table_annotates_spatialelement("table", region="square_008um")
    with pytest.raises(ValueError, match="'square_008um' have the name of Visium HD's bins.*no lattice"):
        sx.pp.pseudo_visium(sdata)


def test_cells_without_an_outline_are_left_out() -> None:
    rng = np.random.default_rng(0)
    outlines = [shapely.Point(xy).buffer(5) for xy in rng.uniform(30, SIDE * PX - 30, (40, 2))]
    values = rng.poisson(3.0, (40, 2))
    sdata = cells(outlines, values)
    shapes = sdata.shapes["cells"]
    shapes.geometry = gpd.GeoSeries([shapely.Polygon(), None, *outlines[2:]], index=shapes.index)
    with pytest.warns(UserWarning, match="^2 rows of the table 'table' have no shape in 'cells', or an empty one"):
        made = sx.pp.pseudo_visium(sdata, mpp=2.0)
    np.testing.assert_allclose(on_grid(made).sum((0, 1)), values[2:].sum(0), rtol=1e-5)
    shapes.geometry = gpd.GeoSeries([shapely.Polygon()] * 40, index=shapes.index)
    with pytest.raises(ValueError, match="all 40 shapes of 'cells' are empty"):
        sx.pp.pseudo_visium(sdata, mpp=2.0)


def test_memory_does_not_grow_with_the_transcripts() -> None:
    def part(seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        gene = pd.Categorical.from_codes(rng.integers(0, 2, 50_000), ["a", "b"])
        return pd.DataFrame({"x": rng.uniform(0, 192, 50_000), "y": rng.uniform(0, 192, 50_000), "feature_name": gene})

    image = Image2DModel.parse(PICTURE.transpose(2, 0, 1), dims=("c", "y", "x"))
    peaks = []
    for n in (2, 20):
        frame = dd.from_map(part, range(n), meta=part(0).iloc[:0])
        points = PointsModel.parse(frame, coordinates={"x": "x", "y": "y"}, feature_key="feature_name")
        sdata = SpatialData(images={"image": image}, points={"transcripts": points})
        tracemalloc.start()
        made = sx.pp.pseudo_visium(sdata, points_key="transcripts", mpp=2.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert made["truth"].X.sum() == n * 50_000
    assert peaks[1] < 1.5 * peaks[0]


def totals(table: AnnData) -> dict[tuple[int, int], float]:
    """All counts of every superpixel, by its place."""
    places = table.obs[["array_row", "array_col"]].to_numpy()
    return dict(zip(map(tuple, places), np.asarray(table.X.sum(1)).ravel(), strict=True))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "picture", "px"), [("visium_hd_kidney", "he.png", 4), ("xenium_pancreas", "pseudo_he.jpg", 16)]
)
def test_real_bins_become_spots_without_loss(data_dir: Path, folder: str, picture: str, px: int) -> None:
    fine = ad.read_h5ad(data_dir / folder / "bins_8um.h5ad")
    sdata = sx.io.from_bins(data_dir / folder / picture, fine, fine.obsm["spatial"], bin_px=px, bin_um=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*too coarse")
        made = sx.pp.pseudo_visium(sdata)
    assert made["truth"].X.sum() == fine.X.sum()
    measured = np.asarray(fine.X.sum(1)).ravel() > 0
    assert made["truth"].n_obs == measured.sum()
    assert totals(made["truth"]) == totals(fine[measured])
    share = made["counts"].X.sum() / fine.X.sum()
    assert share == pytest.approx(np.pi * 27.5**2 / (100**2 * np.sqrt(3) / 2), rel=0.1), "what disks cover"


@pytest.mark.real_data
def test_real_transcripts_become_spots(data_dir: Path) -> None:
    frame = pd.read_csv(data_dir / "xenium_breast" / "transcripts_small.csv.gz")
    frame[["x", "y"]] = frame[["x_location", "y_location"]] - frame[["x_location", "y_location"]].min()
    points = PointsModel.parse(
        dd.from_pandas(frame[["x", "y", "feature_name"]], npartitions=2),
        coordinates={"x": "x", "y": "y"},
        feature_key="feature_name",
    )
    size = np.ceil(frame[["y", "x"]].max()).astype(int)
    image = Image2DModel.parse(np.full((3, *size), 200, np.uint8), dims=("c", "y", "x"))
    made = sx.pp.pseudo_visium(
        SpatialData(images={"image": image}, points={"transcripts": points}), points_key="transcripts", mpp=1.0
    )
    assert made["truth"].X.sum() >= 0.99 * len(frame)
    assert made["counts"].n_obs > 10
