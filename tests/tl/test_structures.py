"""Distances, profiles and aggregates say what was planted, and nothing where nothing was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

from sphistex import tl

SIDE, N_GENES = 100, 60
SIGNATURE = [f"gene{i}" for i in range(8)]
# Middles (row, column) and radii, in superpixels, of places where the signature's genes are high.
SPOTS = ((30, 25, 9), (70, 70, 6), (15, 80, 2))


def section(mask: NDArray[np.bool_], counts: NDArray) -> SpatialData:
    """A result of superpixels of 8 µm, 16 px each, with genes named after their places."""
    ids = np.zeros(mask.shape, dtype=np.int32)
    ids[mask] = np.arange(1, mask.sum() + 1)
    row, column = np.nonzero(mask)
    obs = pd.DataFrame({"instance_id": ids[mask], "array_row": row, "array_col": column})
    obs["region"] = pd.Categorical(["superres_labels"] * len(obs))
    obs.index = obs["instance_id"].astype(str)
    obs.index.name = None
    table = AnnData(
        counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(counts.shape[1])])
    )
    table.obsm["spatial"] = (np.column_stack([column, row]) + 0.5) * 16.0
    table.uns["superres"] = {"pitch_um": 8.0, "mpp": 0.5, "crop": [0, 0]}
    placed = {"global": Scale([16.0, 16.0], axes=("x", "y"))}
    labels = Labels2DModel.parse(ids, dims=("y", "x"), transformations=placed)
    table = TableModel.parse(table, region="superres_labels", region_key="region", instance_key="instance_id")
    return SpatialData(labels={"superres_labels": labels}, tables={"superres": table})


@pytest.fixture
def halves() -> SpatialData:
    """Tumour on the left of column 40; gene0 falls with the distance from there, gene1 is the same everywhere."""
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[:, 90:] = False
    row, column = np.nonzero(mask)
    rng = np.random.default_rng(0)
    beyond = np.maximum((column - 39.5) * 8, 0)
    counts = np.column_stack([5 * np.exp(-beyond / 50), np.full(len(row), 2.0)])
    sdata = section(mask, counts + rng.normal(0, 0.1, counts.shape))
    names = np.where(column < 40, "tumour", "stroma")
    sdata.tables["superres"].obs["annotation"] = pd.Categorical(names)
    return sdata


# ----------------------------------------------------------------------------------------------- distances


def test_distances_are_those_to_a_straight_border(halves):
    tl.interface(halves, ("annotation", "tumour"))
    obs = halves.tables["superres"].obs
    np.testing.assert_allclose(obs["distance_um"], (obs["array_col"] - 39.5) * 8)


def test_a_disk_has_its_radius_and_ends_with_the_tissue(halves):
    centre = 8.0 * np.array([0, 50])  # on the left edge of the tissue, in µm
    disk = GeoDataFrame(geometry=[shapely.Point(*centre * 2).buffer(2 * 200.0, quad_segs=64)])
    halves.shapes["outline"] = ShapesModel.parse(disk, transformations={"global": Identity()})
    tl.interface(halves, element_key="outline", key_added="from_outline")
    table = halves.tables["superres"]
    expected = np.linalg.norm(table.obsm["spatial"] * 0.5 - centre, axis=1) - 200.0
    assert np.abs(table.obs["from_outline"] - expected).max() < 8.0
    assert table.obs["from_outline"].min() == pytest.approx(-200, abs=10)


def test_the_distance_is_kept_on_disk_and_nothing_else_is_replaced(halves, tmp_path: Path):
    halves.write(tmp_path / "section.zarr")
    tl.interface(halves, ("annotation", ["tumour"]))
    tl.interface(halves, ("annotation", ["stroma"]))  # again
    again = read_zarr(tmp_path / "section.zarr").tables["superres"]
    np.testing.assert_array_equal(again.obs["distance_um"], halves.tables["superres"].obs["distance_um"])
    assert list(again.uns["distance_um"]["region"]) == ["annotation", "stroma"]
    with pytest.raises(ValueError, match="key_added='array_row' is in table 'superres' already"):
        tl.interface(halves, ("annotation", "tumour"), key_added="array_row")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"region": ("annotation", "fat")}, ValueError, r"holds no \['fat'\], but \['stroma', 'tumour'\]"),
        ({"region": ("annotation", ["stroma", "tumour"])}, ValueError, "holds all of the 9000 superpixels.*no border"),
        ({"region": ("pathologist", "tumour")}, KeyError, "region='pathologist'.*'annotation'"),
        ({"region": "annotation"}, ValueError, "not a boolean column"),
        ({}, ValueError, "region=None, element_key=None: name one of them"),
        ({"region": "superres_labels"}, ValueError, "pass element_key='superres_labels'"),
        ({"element_key": "outline"}, KeyError, "element_key='outline' is neither in sdata.shapes"),
        ({"region": ("annotation", "tumour"), "table_key": "other"}, KeyError, "table_key='other'"),
    ],
)
def test_regions_without_a_border_are_refused(halves, arguments, error, message):
    with pytest.raises(error, match=message):
        tl.interface(halves, **arguments)
    assert "distance_um" not in halves.tables["superres"].obs


# ------------------------------------------------------------------------------------------------ profiles


def test_profiles_are_the_planted_ones(halves):
    tl.interface(halves, ("annotation", "tumour"))
    found = tl.profiles(halves, ["gene0", "gene1"], bin_um=16, max_um=160)
    falling, even = (found[found["gene"] == gene] for gene in ("gene0", "gene1"))
    at = falling["distance_um"].to_numpy()
    np.testing.assert_array_equal(at, np.arange(-152, 160, 16))
    # the mean over the two columns of a bin
    planted = np.mean([5 * np.exp(-np.maximum(at + shift, 0) / 50) for shift in (-4, 4)], axis=0)
    np.testing.assert_allclose(falling["mean"], planted, atol=0.04)
    np.testing.assert_allclose(even["mean"], 2.0, atol=0.04)
    assert (falling["n_superpixels"] == 2 * SIDE).all() and (falling["n_blocks"] == 4).sum() > 15
    assert (falling["low"] < falling["mean"]).all() and (falling["mean"] < falling["high"]).all()


def test_standard_errors_hold_where_neighbours_are_alike():
    """Of squares that each have a level of their own, intervals must be far wider than superpixels' numbers say."""
    rng = np.random.default_rng(1)
    mask = np.ones((200, 200), dtype=bool)
    row, column = np.nonzero(mask)
    n = 40
    level = rng.normal(0, 1, (n, 8, 8))[:, row // 25, column // 25] + rng.normal(0, 0.3, (n, len(row)))
    sdata = section(mask, level.T)
    sdata.tables["superres"].obs["distance_um"] = np.where(row % 2, 4.0, -4.0)
    found = tl.profiles(sdata, list(sdata.tables["superres"].var_names), block_um=200.0, level=0.9)
    covered = ((found["low"] < 0) & (found["high"] > 0)).mean()
    naive = (found["mean"].abs() < 1.64 * np.sqrt(1.09 / found["n_superpixels"])).mean()
    assert 0.8 < covered <= 1 and naive < 0.3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"genes": ["ACTB"]}, KeyError, "1 of 1 genes are not in 'superres': 'ACTB'"),
        ({"distance_key": "far"}, KeyError, "distance_key='far'.*sphistex.tl.interface"),
        ({"layer": "logs"}, KeyError, "layer='logs'"),
        ({"bin_um": 0}, ValueError, "bin_um=0"),
        ({"level": 95}, ValueError, "level=95"),
    ],
)
def test_mistakes_about_profiles_are_named(halves, arguments, error, message):
    tl.interface(halves, ("annotation", "tumour"))
    with pytest.raises(error, match=message):
        tl.profiles(halves, **({"genes": "gene0"} | arguments))


# ---------------------------------------------------------------------------------------------- aggregates


@pytest.fixture(scope="module")
def planted() -> SpatialData:
    """Noise, in which the signature's genes are high in three disks; other genes vary in large parts of the section."""
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[:, :10] = False
    row, column = np.nonzero(mask)
    rng = np.random.default_rng(2)
    rate = np.full((len(row), N_GENES), 1.0)
    rate[:, 20:40] *= 1 + 2 * (np.sin(row / 15 + rng.uniform(0, 6, 20)[:, None]) > 0).T
    for centre_row, centre_column, radius in SPOTS:
        rate[np.hypot(row - centre_row, column - centre_column) < radius, : len(SIGNATURE)] = 4.0
    return section(mask, rng.poisson(rate))


@pytest.fixture
def tissue(planted: SpatialData) -> SpatialData:
    return SpatialData(
        labels={"superres_labels": planted.labels["superres_labels"]},
        tables={"superres": planted.tables["superres"].copy()},
    )


@pytest.mark.parametrize("threshold", ["chance", "otsu"])
def test_aggregates_are_where_they_were_planted(tissue, threshold):
    tl.aggregates(tissue, SIGNATURE, threshold=threshold)
    shapes, table = tissue.shapes["aggregates"], tissue.tables["superres"]
    # the third one is too small
    assert shapes.index.tolist() == [1, 2]
    for name, (row, column, radius) in zip(shapes.index, SPOTS[:2], strict=True):
        disk = shapely.Point((column + 0.5) * 16, (row + 0.5) * 16).buffer(radius * 16)
        outline = shapes.geometry[name]
        assert outline.intersection(disk).area / outline.union(disk).area > 0.7
        # outlines, sizes and superpixels are the same
        inside = (table.obs["aggregates"] == str(name)).to_numpy()
        assert outline.area / 16**2 == pytest.approx(inside.sum()) == shapes["n_superpixels"][name]
        assert shapely.contains_xy(outline, table.obsm["spatial"])[inside].all()
        assert shapes["area_um2"][name] == 64 * inside.sum()
        assert shapes["score"][name] == pytest.approx(table.obs["aggregates_score"][inside].mean(), rel=1e-5)
    assert shapes["score"].min() >= table.uns["aggregates"]["threshold"]


def test_genes_that_are_high_nowhere_together_make_no_aggregates(tissue):
    with pytest.warns(UserWarning, match="no aggregate: nothing of at least 5000 µm² reaches the threshold"):
        tl.aggregates(tissue, [f"gene{i}" for i in range(40, 48)])
    assert "aggregates" not in tissue.shapes
    assert tissue.tables["superres"].obs["aggregates"].isna().all()


def test_aggregates_can_be_made_again_with_the_same_seed_and_summed(tissue, tmp_path: Path):
    tl.aggregates(tissue, SIGNATURE, seed=3)
    first = tissue.shapes["aggregates"]
    with pytest.raises(ValueError, match="pass overwrite=True"):
        tl.aggregates(tissue, SIGNATURE)
    tl.aggregates(tissue, SIGNATURE, seed=3, overwrite=True)
    assert tissue.shapes["aggregates"].equals(first)
    tissue.write(tmp_path / "section.zarr")
    again = read_zarr(tmp_path / "section.zarr")
    assert again.shapes["aggregates"].geometry.geom_equals(first.geometry).all()
    tl.aggregate_by(again, "aggregates")
    table = again.tables["aggregates_superres"]
    np.testing.assert_allclose(table.obs["covered_um2"], first["area_um2"])
    inside = again.tables["superres"].obs["aggregates"] == "1"
    np.testing.assert_allclose(table.X[0], again.tables["superres"].X[inside.to_numpy()].sum(0))


def test_missing_genes_are_counted_and_named(tissue):
    with pytest.warns(UserWarning, match=r"8 of the 9 genes of the signature .* left out are \['CXCL13'\]"):
        tl.aggregates(tissue, [*SIGNATURE, "CXCL13"])
    with pytest.raises(ValueError, match="2 of the 3 genes of the signature are in table 'superres', at least 3"):
        tl.aggregates(tissue, ["gene1", "gene2", "CXCL13"], key_added="others")
    with pytest.raises(ValueError, match="0 of the 3 genes.*has gene symbols.*the signature has Ensembl ids"):
        tl.aggregates(tissue, [f"ENSG0000015623{i}" for i in range(3)], key_added="others")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"genes": "gene1"}, TypeError, "genes='gene1' is a string"),
        ({"threshold": "high"}, ValueError, "threshold='high'"),
        ({"smooth_um": -1}, ValueError, "smooth_um=-1"),
        ({"key_added": "array_row"}, ValueError, "key_added='array_row'"),
        ({"genes": [f"gene{i}" for i in range(30)]}, ValueError, "30 genes beside the 30 of the signature, too few"),
    ],
)
def test_mistakes_about_aggregates_are_named(tissue, arguments, error, message):
    with pytest.raises(error, match=message):
        tl.aggregates(tissue, **({"genes": SIGNATURE} | arguments))
    assert not tissue.shapes
