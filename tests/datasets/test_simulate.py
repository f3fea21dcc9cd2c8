"""A simulated section has what a real one has, and a truth that its spots and its picture agree with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from spatialdata import SpatialData, get_values, read_zarr
from spatialdata.transformations import get_transformation

from sphistex.bags import Bags
from sphistex.datasets import simulate
from sphistex.grid import Grid

MPP = 0.5
SIZE_UM = 800.0


@pytest.fixture(scope="module")
def sdata() -> SpatialData:
    return simulate(size_um=SIZE_UM, n_genes=60, depth=2000, seed=1)


@pytest.fixture(scope="module")
def expected_spots(sdata: SpatialData) -> np.ndarray:
    """What the spots should measure on average, from geometry and truth alone."""
    on_tissue = sdata["truth_labels"].values.ravel() > 0
    grid = Grid.over_image(sdata["image"].shape[1:], mpp=MPP)
    spots = sdata["spots"]
    bags = Bags.from_disks(grid, np.stack([spots.geometry.x, spots.geometry.y], axis=1), spots["radius"].to_numpy())
    return bags.weights[:, on_tissue] @ sdata["truth"].layers["expected"]


def _haematoxylin(sdata: SpatialData) -> np.ndarray:
    """Darkness in red per superpixel of tissue: eosin absorbs little of it, haematoxylin most."""
    ids = sdata["truth_labels"].values
    red = -np.log((sdata["image"].sel(c="r").values.astype(float) + 1) / 256)
    per_superpixel = red.reshape(ids.shape[0], 16, ids.shape[1], 16).mean(axis=(1, 3))
    return per_superpixel[ids > 0]


def test_elements_and_their_names(sdata: SpatialData) -> None:
    assert set(sdata.images) == {"image"} and set(sdata.shapes) == {"spots"}
    assert set(sdata.labels) == {"truth_labels"} and set(sdata.tables) == {"counts", "truth"}
    assert sdata.coordinate_systems == ["global"]
    image = sdata["image"]
    assert image.dtype == np.uint8 and image.shape == (3, 1600, 1600)
    assert list(image.coords["c"].values) == ["r", "g", "b"]


def test_spots_lie_on_the_visium_lattice(sdata: SpatialData) -> None:
    spots, counts = sdata["spots"], sdata["counts"]
    xy = np.stack([spots.geometry.x, spots.geometry.y], axis=1)
    assert np.allclose(spots["radius"], 27.5 / MPP)
    assert np.allclose(counts.obsm["spatial"], xy)
    pitch = cKDTree(xy).query(xy, k=2)[0][:, 1] * MPP
    assert np.allclose(pitch, 100.0)
    row, column = counts.obs["array_row"].to_numpy(), counts.obs["array_col"].to_numpy()
    assert ((row + column) % 2 == 0).all()
    # The array positions say where the spots are, up to the corner of the lattice.
    corner = xy * MPP - np.stack([column * 50.0, row * 100.0 * np.sqrt(3) / 2], axis=1)
    assert np.ptp(corner, axis=0).max() < 1e-6
    assert (xy * MPP > 27.5 - 1e-6).all() and (xy * MPP < SIZE_UM - 27.5 + 1e-6).all()


def test_counts_are_raw_and_as_deep_as_asked(sdata: SpatialData) -> None:
    for name in ("counts", "truth"):
        values = sdata[name].X.data
        assert (values >= 0).all() and (values == np.round(values)).all()
    totals = sdata["counts"].X.sum(axis=1)
    assert abs(totals.mean() / 2000 - 1) < 0.05


def test_spots_measure_what_the_truth_expects(sdata: SpatialData, expected_spots: np.ndarray) -> None:
    counts = sdata["counts"].X.toarray()
    dispersion = sdata["counts"].var["dispersion"].to_numpy()
    # Upper bound of the variance: negative binomial as if a spot were one superpixel.
    variance = (expected_spots + dispersion * expected_spots**2).sum(axis=0)
    z = (counts.sum(axis=0) - expected_spots.sum(axis=0)) / np.sqrt(variance)
    assert np.abs(z).max() < 4.5
    # Each spot, not only each gene: counts scatter around the expectation without any trend.
    ratio = np.log(counts.sum(axis=1) / expected_spots.sum(axis=1))
    assert np.abs(ratio).max() < 0.3 and abs(ratio.mean()) < 0.03
    # The bound could fail: spots taken from their neighbours' places are far outside it.
    shifted = np.log(counts.sum(axis=1) / np.roll(expected_spots.sum(axis=1), 1))
    assert np.abs(shifted).max() > 0.6


def test_spots_do_not_repeat_the_noise_of_the_truth(sdata: SpatialData, expected_spots: np.ndarray) -> None:
    on_tissue = sdata["truth_labels"].values.ravel() > 0
    grid = Grid.over_image(sdata["image"].shape[1:], mpp=MPP)
    bags = Bags.from_disks(grid, sdata["counts"].obsm["spatial"], 27.5 / MPP)
    spread = np.sqrt(expected_spots)
    sampled = (bags.weights[:, on_tissue] @ sdata["truth"].X.toarray() - expected_spots) / spread
    measured = (sdata["counts"].X.toarray() - expected_spots) / spread
    assert abs(np.corrcoef(sampled.ravel(), measured.ravel())[0, 1]) < 0.08


def test_truth_varies_as_its_dispersion_says(sdata: SpatialData) -> None:
    truth = sdata["truth"]
    expected, sampled = truth.layers["expected"].astype(float), truth.X.toarray()
    excess = ((sampled - expected) ** 2 - expected).sum(axis=0) / (expected**2).sum(axis=0)
    well_measured = expected.mean(axis=0) > np.quantile(expected.mean(axis=0), 0.7)
    dispersion = truth.var["dispersion"].to_numpy()
    assert np.allclose(excess[well_measured].mean(), dispersion[well_measured].mean(), rtol=0.25)


def test_truth_lies_on_the_picture(sdata: SpatialData) -> None:
    dark, rna = _haematoxylin(sdata), sdata["truth"].obsm["rna"]
    ids = sdata["truth_labels"].values
    cells = np.zeros(ids.shape)
    cells[ids > 0] = rna[["tumour", "epithelium", "lymphocyte"]].sum(axis=1)
    here = np.corrcoef(dark, cells[ids > 0])[0, 1]
    assert here > 0.6
    # A superpixel's shift in any direction makes it worse, so that nothing is off by one or transposed.
    for shift in (-1, 1):
        for axis in (0, 1):
            assert np.corrcoef(dark, np.roll(cells, shift, axis)[ids > 0])[0, 1] < here - 0.02
    assert np.corrcoef(dark, cells[::-1, ::-1][ids > 0])[0, 1] < 0.5 * here


def test_slide_around_the_tissue_is_empty(sdata: SpatialData) -> None:
    ids = sdata["truth_labels"].values
    assert 0.5 < (ids > 0).mean() < 0.95
    brightness = sdata["image"].values.min(axis=0).reshape(ids.shape[0], 16, ids.shape[1], 16).mean(axis=(1, 3))
    # Superpixels well away from the border, which the tissue may touch.
    far = gaussian_filter((ids > 0).astype(float), 2.0) < 1e-3
    assert far.any() and brightness[far].min() > 220
    stroma = (sdata["truth"].obs["compartment"] == "stroma").to_numpy()
    assert brightness[ids > 0][stroma].mean() < 190


def test_gradients_are_not_in_the_picture(sdata: SpatialData) -> None:
    truth, dark = sdata["truth"], _haematoxylin(sdata)
    rna = truth.obsm["rna"].to_numpy()
    log_rate = np.log(truth.layers["expected"].astype(float))
    kind = truth.var["kind"].to_numpy()
    gradient = log_rate[:, kind == "gradient"]
    assert gradient.std(axis=0).min() > 0.5
    with_cells = np.corrcoef(np.hstack([gradient, rna, dark[:, None]]).T)[: gradient.shape[1], gradient.shape[1] :]
    assert np.abs(with_cells).max() < 0.2
    # Markers, in contrast, are high where their cells are.
    markers = truth.var.query("kind == 'marker' and cell_type == 'tumour'").index
    rates = truth.to_df("expected")[markers]
    assert (rates.corrwith(pd.Series(rna[:, 0], rates.index)) > 0.7).all()


def test_kinds_of_genes(sdata: SpatialData) -> None:
    var = sdata["counts"].var
    assert var.index.is_unique and set(var["kind"]) == {"marker", "mixed", "gradient", "broad"}
    assert set(var.query("kind == 'marker'")["cell_type"]) == set(sdata["truth"].obsm["rna"].columns)
    pd.testing.assert_frame_equal(var, sdata["truth"].var)
    means = sdata["counts"].to_df().mean()
    assert means.max() > 5 * means.median()


def test_same_seed_same_data() -> None:
    first, again, other = (simulate(size_um=240, n_genes=10, seed=seed) for seed in (3, 3, 4))
    assert (first["image"].values == again["image"].values).all()
    assert (first["image"].values != other["image"].values).any()
    for name in ("counts", "truth"):
        pd.testing.assert_frame_equal(first[name].to_df(), again[name].to_df())


def test_sections_share_genes_and_have_their_own_tissue() -> None:
    sdata = simulate(size_um=(240, 320), n_genes=10, n_sections=2)
    assert set(sdata.images) == {"image_1", "image_2"} and sdata["image_1"].shape == (3, 480, 640)
    assert set(sdata.coordinate_systems) == {"section_1", "section_2"}
    assert set(get_transformation(sdata["truth_labels_2"], get_all=True)) == {"section_2"}
    assert (sdata["image_1"].values != sdata["image_2"].values).mean() > 0.3
    pd.testing.assert_frame_equal(sdata["counts_1"].var, sdata["counts_2"].var)


def test_size_that_is_no_multiple_of_a_superpixel() -> None:
    sdata = simulate(size_um=(251.0, 203.0), n_genes=10)
    assert sdata["image"].shape == (3, 502, 406)
    assert sdata["truth_labels"].shape == Grid.over_image((502, 406), mpp=MPP).shape


def test_writes_and_reads_back(tmp_path) -> None:
    sdata = simulate(size_um=240, n_genes=10)
    sdata.write(tmp_path / "section.zarr")
    back = read_zarr(tmp_path / "section.zarr")
    assert (back["image"].values == sdata["image"].values).all()
    pd.testing.assert_frame_equal(back["truth"].to_df("expected"), sdata["truth"].to_df("expected"))
    pd.testing.assert_frame_equal(back["truth"].obsm["rna"], sdata["truth"].obsm["rna"])
    gene = sdata["counts"].var_names[0]
    measured = get_values(gene, sdata=back, element_name="spots", table_name="counts")[gene]
    assert measured.to_numpy() == pytest.approx(sdata["counts"].to_df()[gene].to_numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_um": -5}, "size_um=-5"),
        ({"size_um": (300, 20)}, r"size_um=\(300, 20\).*200 µm"),
        ({"size_um": "big"}, "size_um='big'"),
        ({"size_um": (1, 2, 3)}, r"size_um=\(1, 2, 3\)"),
        ({"size_um": float("nan")}, "size_um=nan"),
        ({"n_genes": 0}, "n_genes=0"),
        ({"n_genes": 2.5}, "n_genes=2.5"),
        ({"n_sections": -1}, "n_sections=-1"),
        ({"depth": 0}, "depth=0"),
        ({"depth": float("inf")}, "depth=inf"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_refuses_what_makes_no_section(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(**arguments)
