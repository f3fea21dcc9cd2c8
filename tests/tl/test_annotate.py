"""Regions of a result whose expression is known: its own truth; and of a real one, lazy or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.ndimage import label
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData, read_zarr
from spatialdata.models import TableModel

import sphistex as sx
from sphistex.metrics.baselines import linear
from sphistex.tl._on_grid import smoothed, without_fragments
from sphistex.tl._results import find_result, section_of, spot_of_each
from sphistex.tl._stability import most_stable, stability

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    yield
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def simulated() -> SpatialData:
    return sx.datasets.simulate(size_um=900, n_genes=60, seed=1)


@pytest.fixture
def sdata(simulated: SpatialData) -> SpatialData:
    """The section with a result that is its truth."""
    section = SpatialData.init_from_elements({name: element for _, name, element in simulated.gen_elements()})
    truth = simulated.tables["truth"]
    crop = truth.obs[["array_row", "array_col"]].min().to_numpy()
    obs = truth.obs[["region", "instance_id", "compartment"]].copy()
    obs[["array_row", "array_col"]] = truth.obs[["array_row", "array_col"]] - crop
    result = AnnData(np.asarray(truth.layers["expected"]).copy(), obs=obs, var=truth.var.copy())
    result.obsm["spatial"] = np.asarray(truth.obsm["spatial"])
    elements = {"image_key": "image", "shapes_key": "spots", "table_key": "counts", "coordinate_system": "global"}
    result.uns["superres"] = {"section": elements, "mpp": 0.5, "pitch_um": 8.0, "crop": crop.tolist()}
    section.tables["superres"] = TableModel.parse(
        result, region="truth_labels", region_key="region", instance_key="instance_id"
    )
    section.tables["counts"].obs = section.tables["counts"].obs.copy()
    return section


def colours(tiles: np.ndarray) -> np.ndarray:
    """Mean colours of every patch."""
    n, height, width, _ = tiles.shape
    return tiles.reshape(n, height // 16, 16, width // 16, 16, 3).mean((2, 4), dtype=np.float32)


def spot_compartments(sdata: SpatialData) -> pd.Series:
    """What a pathologist would say of each spot: the compartment of most of it, in three classes."""
    superpixels, spots = sdata.tables["superres"], sdata.tables["counts"]
    found = []
    for xy in spots.obsm["spatial"]:
        inside = np.hypot(*(superpixels.obsm["spatial"] - xy).T) < 55
        found.append(three(superpixels.obs["compartment"][inside]).mode()[0])
    return pd.Series(found, index=spots.obs_names)


def three(compartments: pd.Series) -> pd.Series:
    names = compartments.astype(str)
    return names.where(names.isin(["tumour", "stroma"]), "other")


def test_lazy_and_dense_counts_give_the_same_regions(tmp_path: Path):
    sdata = sx.datasets.simulate(size_um=600, n_genes=20)
    model = sx.tl.super_resolve(sdata, encoder=colours, epochs=2, n_models=1, lazy=True, device="cpu")
    sdata.write(tmp_path / "section.zarr")
    sx.tl.annotate(sdata, n_clusters=3)
    stored = read_zarr(tmp_path / "section.zarr").tables["superres"]
    assert stored.X is None  # still lazy
    sx.tl.predict(sdata, model, key_added="dense", lazy=False)
    sx.tl.annotate(sdata, table_key="dense", n_clusters=3)
    dense = sdata.tables["dense"].obs["annotation"]
    # latent maps are kept in half precision
    assert adjusted_rand_score(stored.obs["annotation"], dense) > 0.95


def test_fragments_go_to_the_label_that_borders_them_most():
    codes = np.zeros((8, 12), dtype=int)
    codes[:, 6:] = 1
    codes[3:5, 4:7] = 2  # touches 0 on more sides than 1
    codes[6, 9] = 3
    mask = np.ones(codes.shape, dtype=bool)
    mask[:, 10] = False
    codes[:2, 11] = 4  # an island
    merged = np.full(codes.shape, -1)
    merged[mask] = without_fragments(codes[mask], mask, smallest=7)
    assert (merged[3:5, 4:7] == 0).all() and merged[6, 9] == 1
    np.testing.assert_array_equal(merged[:, 11], codes[:, 11])
    np.testing.assert_array_equal(without_fragments(merged[mask], mask, smallest=7), merged[mask])


def test_smoothing_keeps_what_is_even_and_sees_nothing_outside_of_the_tissue():
    mask = RNG.random((30, 40)) < 0.6
    values = np.stack([np.full(mask.sum(), 3.0), RNG.normal(size=mask.sum())], 1).astype(np.float32)
    found = smoothed(values, mask, sigma=2.0)
    np.testing.assert_allclose(found[:, 0], 3, rtol=1e-5)
    assert found[:, 1].std() < 0.5 * values[:, 1].std()


def test_the_planted_number_of_clusters_is_the_most_stable():
    centres = 6 * RNG.normal(size=(5, 4))
    points = (centres[RNG.integers(5, size=3000)] + RNG.normal(size=(3000, 4))).astype(np.float32)
    judged = stability(points, range(3, 9), seed=0)
    assert most_stable(judged) == 5
    by_number = judged.set_index("n_clusters")["stability"]
    assert by_number[5] > 0.95 and by_number[8] < 0.9


def test_regions_of_true_expression_are_the_compartments(sdata):
    sx.tl.annotate(sdata, n_clusters=4, smooth_um=8)
    table = sdata.tables["superres"]
    found = table.obs["annotation"]
    assert adjusted_rand_score(table.obs["compartment"], found) > 0.3
    sizes = found.value_counts(sort=False)
    assert list(sizes.index) == ["1", "2", "3", "4"] and sizes.is_monotonic_decreasing
    sx.tl.annotate(sdata, n_clusters=4, smooth_um=8, min_area_um2=0, key_added="raw")
    assert adjusted_rand_score(table.obs["raw"], found) > 0.8
    assert n_fragments(table, "annotation") < 0.5 * n_fragments(table, "raw")


def n_fragments(table: AnnData, column: str) -> int:
    codes = table.obs[column].cat.codes
    raster = np.full(table.obs[["array_row", "array_col"]].max() + 1, -1)
    raster[tuple(table.obs[["array_row", "array_col"]].to_numpy().T)] = codes
    return sum(label(raster == code)[1] for code in codes.unique())


def test_leiden_finds_regions_that_a_finer_one_divides(sdata):
    table = sdata.tables["superres"]
    half = table[table.obs["array_row"] < 35].copy()
    sdata.tables["superres"] = half
    for resolution in (0.1, 1.0):
        sx.tl.annotate(sdata, method="leiden", resolution=resolution, key_added=f"at_{resolution}")
    coarse, fine = half.obs["at_0.1"], half.obs["at_1.0"]
    assert 1 < coarse.nunique() < fine.nunique()
    tumour = half.obs["compartment"] == "tumour"
    assert pd.crosstab(coarse, tumour, normalize="index")[True].max() > 2 * tumour.mean()


def test_markers_of_regions_are_genes_of_their_cells(sdata):
    sx.tl.annotate(sdata, n_clusters=6)
    found = sx.tl.markers(sdata, table_key="superres", groupby="annotation")
    table = sdata.tables["superres"]
    tumour = table.obs["annotation"][table.obs["compartment"] == "tumour"].mode()[0]
    best = found[found["group"] == tumour]["gene"].iloc[0]
    inside = (table.obs["annotation"] == tumour).to_numpy()
    mean = np.asarray(table[:, best].X).ravel()
    assert mean[inside].mean() > 2 * mean[~inside].mean()


def test_a_number_is_chosen_and_recorded(sdata):
    sx.tl.annotate(sdata, n_clusters=[3, 4, 5])
    made = sdata.tables["superres"].uns["annotation"]
    judged = made["stability"]
    assert list(judged["n_clusters"]) == [3, 4, 5]
    assert made["params"]["n_clusters"] == most_stable(judged)
    sx.tl.annotate(sdata, n_clusters=[3, 4, 5], key_added="again")
    table = sdata.tables["superres"]
    assert (table.obs["annotation"] == table.obs["again"]).all()


def test_superpixels_get_the_classes_of_spots_and_of_their_expression(sdata):
    spots, table = sdata.tables["counts"], sdata.tables["superres"]
    classes = spot_compartments(sdata)
    known = RNG.random(len(classes)) < 0.8
    spots.obs["pathologist"] = pd.Categorical(classes.where(known))
    sx.tl.transfer_annotation(sdata, "pathologist", key_added="transferred")
    found, true = table.obs["transferred"].astype(str), three(table.obs["compartment"])
    nearest = np.hypot(*(table.obsm["spatial"][:, None] - spots.obsm["spatial"][known]).transpose(2, 0, 1))
    spot, inside = nearest.argmin(1), nearest.min(1) < 47  # well inside of 55 px
    of_spot = classes[known].to_numpy()[spot]
    assert (found[inside] == of_spot[inside]).mean() > 0.8
    # elsewhere expression knows more than the nearest spot
    assert (found[~inside] == true[~inside]).mean() > (of_spot[~inside] == true[~inside]).mean() + 0.05
    made = table.uns["transferred"]
    assert sum(made["n_spots"].values()) == known.sum() and 1 / 3 < made["held_out_accuracy"] <= 1
    assert table.obs["transferred_probability"].between(1 / 3, 1).all()


def test_superpixels_that_were_cut_out_belong_to_the_same_spots(sdata):
    corner = np.array([310, 205])
    cut = sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=corner, max_coordinate=corner + 900, target_coordinate_system="global"
    )
    found = []
    for one in (sdata, cut):
        table, made = find_result(one, "superres")
        section = section_of(one, made, "superres")
        spot = spot_of_each(one, section, table, made)
        names = section.table.obs_names.to_numpy(object)
        found.append(pd.Series(np.where(spot >= 0, names[spot], None), index=table.obs_names))
    before, after = found[0][found[1].index], found[1]
    both = before.notna() & after.notna()
    assert (before[both] == after[both]).all()
    assert both.sum() > 0.8 * before.notna().sum() > 0  # spots on the edge are cut off


@pytest.mark.slow
def test_resolved_regions_are_nearer_to_the_true_ones_than_those_of_interpolated_spots():
    sdata = sx.datasets.simulate(size_um=1300, seed=2)  # the settings were chosen on others
    sx.tl.super_resolve(sdata, encoder="efficientnet_lite0")
    result, spots, truth = (sdata.tables[name] for name in ("superres", "counts", "truth"))
    between = result.copy()
    counts = spots[:, result.var_names].X.toarray()
    between.X = linear(spots.obsm["spatial"], counts, result.obsm["spatial"]).astype(np.float32)
    between.uns["interpolated"] = between.uns.pop("superres")
    sdata.tables["interpolated"] = between
    compartment = pd.Series(truth.obs["compartment"].to_numpy(), index=map(tuple, truth.obsm["spatial"]))
    true = compartment.reindex(map(tuple, result.obsm["spatial"])).to_numpy()
    for n in (None, 8):  # as it is chosen for each, and as many as there are compartments
        score = {}
        for name in ("superres", "interpolated"):
            sx.tl.annotate(sdata, table_key=name, n_clusters=n)
            score[name] = sx.metrics.agreement(sdata.tables[name].obs["annotation"], true).adjusted_rand_index
        assert score["superres"] > score["interpolated"] + 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table_key": "nowhere"}, KeyError, "table_key='nowhere'.*'superres'"),
        ({"table_key": "counts"}, ValueError, r"'counts' is a table, but not a result.*\['superres'\]"),
        ({"method": "guess"}, ValueError, "method='guess' must be one of"),
        ({"n_clusters": 1}, ValueError, "n_clusters=1: give a number"),
        ({"n_clusters": 3.0}, ValueError, r"n_clusters=3\.0: give a number"),
        ({"key_added": "a/b"}, ValueError, "key_added='a/b' cannot be stored: Name must contain only"),
        ({"key_added": 5}, TypeError, "key_added=5 cannot be stored"),
        ({"n_clusters": 10**6}, ValueError, "too few to cluster"),
        ({"method": "leiden", "n_clusters": 3}, ValueError, "resolution="),
        ({"smooth_um": -1}, ValueError, "smooth_um=-1"),
        ({"smooth_um": "10"}, ValueError, "smooth_um='10' must be a number"),
        ({"n_components": 0}, ValueError, "n_components=0"),
        ({"key_added": "compartment"}, ValueError, "key_added='compartment' is in table 'superres' already"),
    ],
)
def test_mistakes_are_named_and_nothing_is_added(sdata, arguments, error, message):
    table = sdata.tables["superres"]
    before = list(table.obs), set(table.uns)
    with pytest.raises(error, match=message):
        sx.tl.annotate(sdata, **arguments)
    assert (list(table.obs), set(table.uns)) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"column": "nothing"}, KeyError, "column='nothing' is not among the obs columns of table 'counts'"),
        ({"column": "same"}, ValueError, r"has 1 classes.*\['tissue'\]"),
        ({"column": "rare"}, ValueError, r"1 of the 3 classes have fewer than 5 spots.*\{'rare': 1\}"),
        ({"column": "side", "trust": 1}, ValueError, "trust=1"),
        ({"column": "side", "key_added": "compartment"}, ValueError, "key_added='compartment'"),
    ],
)
def test_what_cannot_be_transferred_is_named(sdata, arguments, error, message):
    spots, table = sdata.tables["counts"].obs, sdata.tables["superres"]
    spots["same"], spots["side"] = "tissue", np.where(spots["array_col"] < 8, "left", "right")
    spots["rare"] = ["rare"] + list(spots["side"])[1:]
    before = list(table.obs)
    with pytest.raises(error, match=message):
        sx.tl.transfer_annotation(sdata, **arguments)
    assert list(table.obs) == before
