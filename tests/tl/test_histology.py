"""From measured sections to a model, and from an image alone to a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import squidpy as sq
from scipy.spatial import KDTree
from spatialdata import SpatialData, read_zarr

import sphistex as sx

QUICK: dict[str, Any] = {"epochs": 20, "n_models": 1}


def colour(tiles: np.ndarray) -> np.ndarray:
    """Mean colour and its spread of each superpixel."""
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // 16, 16, width // 16, 16, 3).astype(np.float32) / 255
    return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], axis=-1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path / "cache", False
    yield
    sx.settings.cache_dir, sx.settings.progress = before


def section(seed: int) -> SpatialData:
    sdata = sx.datasets.simulate(size_um=1000, n_genes=30, seed=seed)
    counts, truth = sdata.tables["counts"], sdata.tables["truth"]
    place = KDTree(truth.obsm["spatial"]).query(counts.obsm["spatial"])[1]
    tumour = np.isin(truth.obs["compartment"].astype(str).to_numpy()[place], ["tumour"])
    counts.obs["tumour"] = pd.Categorical(np.where(tumour, "tumour", "other"))
    counts.obs["patient"] = "AABB"[seed]
    return sdata


@pytest.fixture(scope="module")
def sections() -> list[SpatialData]:
    return [section(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def model(sections: list[SpatialData]) -> sx.tl.HistologyModel:
    return sx.tl.fit_histology(sections[:2], genes=12, regions_key="tumour", encoder=colour, **QUICK)


def image_alone(sdata: SpatialData) -> SpatialData:
    return SpatialData(images={"he": sdata.images["image"]})


def test_features_have_the_places_of_the_spots(sections: list[SpatialData], model: sx.tl.HistologyModel) -> None:
    table, counts = sections[0].tables["lattice_features"], sections[0].tables["counts"]
    own = counts[table.obs_names]
    np.testing.assert_allclose(table.obsm["spatial"], own.obsm["spatial"])
    for name in ("array_row", "array_col"):  # up to where the array begins
        assert len(set(table.obs[name] - own.obs[name])) == 1
    assert table.uns["lattice_features"]["lattice"]["kind"] == "hexagonal"
    assert list(table.var["scale"].unique()) == [1, 2, 4]


def test_features_are_means_over_the_spot_and_its_surroundings(sections: list[SpatialData]) -> None:
    sdata = sections[0]
    table, image = sdata.tables["lattice_features"], np.asarray(sdata.images["image"].data)
    spot = len(table) // 2
    x, y = table.obsm["spatial"][spot]
    rows, columns = np.indices(image.shape[1:])
    dim = table.uns["lattice_features"]["dim"]
    for number, scale in enumerate((1, 2)):
        disk = np.hypot(columns + 0.5 - x, rows + 0.5 - y) < 55 * scale
        inside = disk & (
            np.asarray(sdata.labels["tissue"].data).repeat(16, 0).repeat(16, 1)[: disk.shape[0], : disk.shape[1]] > 0
        )
        expected = image[:, inside].mean(1) / 255
        np.testing.assert_allclose(table.X[spot, number * dim : number * dim + 3], expected, atol=0.02)


def test_an_image_alone_gets_expression_and_regions(
    sections: list[SpatialData], model: sx.tl.HistologyModel, tmp_path: Path
) -> None:
    sdata = image_alone(sections[2])
    sx.tl.predict_histology(sdata, model, encoder=colour, mpp=0.5)
    table = sdata.tables["histology"]
    assert list(table.var_names) == model.genes
    assert table.X.dtype == np.float32
    assert np.isfinite(table.X).all()
    np.testing.assert_allclose(table.obsm["region_probabilities"].sum(1), 1, rtol=1e-5)
    assert list(table.obs["predicted_region"].cat.categories) == ["other", "tumour"]
    step = np.diff(np.unique(table.obsm["spatial"][:, 1]))
    np.testing.assert_allclose(step, 100 / 0.5 * 3**0.5 / 2, rtol=1e-6)
    sdata.write(tmp_path / "predicted.zarr")
    again = read_zarr(tmp_path / "predicted.zarr")
    table = again.tables["histology"]
    sc.pp.pca(table, n_comps=3)
    sq.gr.spatial_neighbors(table, coord_type="generic", n_neighs=6)
    sq.gr.spatial_autocorr(table, mode="moran")
    sq.pl.spatial_scatter(table, color="predicted_region", library_id="histology")


def test_prediction_goes_with_what_is_measured(sections: list[SpatialData], model: sx.tl.HistologyModel) -> None:
    sdata = sections[2]
    sx.tl.predict_histology(sdata, model, encoder=colour, overwrite=True)
    table = sdata.tables["histology"]
    counts = sdata.tables["counts"][table.obs_names].copy()
    assert model.classes == ["other", "tumour"]
    sc.pp.normalize_total(counts, target_sum=1e4)
    sc.pp.log1p(counts)
    measured = np.asarray(counts[:, model.genes].X.toarray())
    assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(table.X.T, measured.T, strict=True)]) > 0.15
    np.testing.assert_allclose(table.X.mean(), measured.mean(), rtol=0.3)


def test_a_predicted_section_can_be_super_resolved(sections: list[SpatialData], model: sx.tl.HistologyModel) -> None:
    sdata = image_alone(sections[2])
    sx.tl.predict_histology(sdata, model, encoder=colour, mpp=0.5)
    sx.tl.super_resolve(
        sdata, table_key="histology", shapes_key="lattice_features_spots", encoder=colour, epochs=2, n_models=1
    )
    fine = sdata.tables["superres"]
    assert fine.uns["superres"]["predicted_spots"]
    assert sx.pl.expression(sdata, list(fine.var_names[:1]), return_fig=True) is not None
    assert set(fine.var_names) <= set(model.genes)
    assert fine.n_obs > 20 * sdata.tables["histology"].n_obs


def test_subtypes_and_sets_of_a_predicted_section(sections: list[SpatialData], model: sx.tl.HistologyModel) -> None:
    """What is predicted is logged, may be a little below 0, and is known as what it is."""
    pytest.importorskip("decoupler")
    sdata = image_alone(sections[2])
    sx.tl.predict_histology(sdata, model, encoder=colour, mpp=0.5)
    table = sdata.tables["histology"]
    sx.tl.tumour_subtypes(sdata, table_key="histology", tumour=("predicted_region", "tumour"), n_subtypes=2)
    tumour = table.obs["predicted_region"] == "tumour"
    assert (table.obs["subtype"].notna() == tumour).all()
    sets = {"some": model.genes[:6], "others": model.genes[6:]}
    sx.tl.enrich(sdata, table_key="histology", gene_sets=sets, groupby="predicted_region")
    difference = table.obsm["enrichment"]["some"] - table.obsm["enrichment"]["others"]
    expected = table.X[:, :6].mean(1) - table.X[:, 6:].mean(1)
    assert np.corrcoef(difference, expected)[0, 1] > 0.9
    assert sx.pl.regions(sdata, "subtype", table_key="histology", return_fig=True) is not None


def test_cross_validation_stands_beside_what_has_to_be_beaten(sections: list[SpatialData]) -> None:
    found = sx.tl.cross_validate_histology(
        sections, groups="patient", genes=12, regions_key="tumour", encoder=colour, **QUICK
    )
    assert list(found.summary().index) == ["model", "ridge", "nearest", "mean"]
    assert len(found.expression) == 3 * 4 * 12
    summary = found.summary()
    assert summary.loc["mean", "pearson"] == 0
    assert summary.loc["model", "pearson"] > 0.1
    assert summary.loc["mean", "auc"] == pytest.approx(0.5)
    assert set(found.expression["group"]) == {"A", "B"}


def test_what_does_not_go_together_is_refused(sections: list[SpatialData], model: sx.tl.HistologyModel) -> None:
    def fails(said: str, error: type[Exception] = ValueError, /, **how: Any) -> None:
        with pytest.raises(error, match=said):
            sx.tl.fit_histology(how.pop("sections", sections[:2]), encoder=colour, **how)

    fails("no column of obs", KeyError, regions_key="pathologist")
    fails("one class", regions_key="patient", sections=[sections[0], sections[1]])
    counts = sections[0]["counts"].copy()
    counts.obs["depth"] = counts.to_df().sum(axis=1) / 7
    measured = SpatialData(images=dict(sections[0].images), shapes=dict(sections[0].shapes), tables={"counts": counts})
    fails("holds measurements, such as .* and not classes", regions_key="depth", sections=[measured])
    fails("there is only the image.*sphistex.tl.predict", sections=[sections[0], image_alone(sections[1])])
    fails("unknown parameters", epoch=3)
    fails("not in", KeyError, genes=["NPHS1"])
    other = section(1)
    sx.tl.lattice_features(other, encoder=colour, scales=(1,))
    fails(r"scales=\[1\]", sections=[sections[0], other])
    renamed = section(1)
    renamed.tables["counts"].var_names = [f"other{i}" for i in range(30)]
    fails("no gene in common", sections=[sections[0], renamed])
    with pytest.raises(ValueError, match="at least two"):
        sx.tl.cross_validate_histology(sections[:1], encoder=colour)
    with pytest.raises(ValueError, match="all sections are of"):
        sx.tl.cross_validate_histology(sections[:2], groups="patient", encoder=colour)
    with pytest.raises(ValueError, match="exists"):
        sx.tl.lattice_features(sections[0], encoder=colour)
    with pytest.raises(ValueError, match="scales="):
        sx.tl.lattice_features(section(2), encoder=colour, scales=(1, 1))
    with pytest.raises(ValueError, match="mpp=None"):
        sx.tl.predict_histology(image_alone(sections[2]), model, encoder=colour)


def test_one_section_is_enough_with_a_warning(sections: list[SpatialData]) -> None:
    with pytest.warns(UserWarning, match="fitted to one section"):
        sx.tl.fit_histology(sections[0], genes=3, encoder=colour, epochs=1, n_models=1)


def test_a_slide_without_tissue_is_refused(sections: list[SpatialData], model: sx.tl.HistologyModel) -> None:
    sdata = image_alone(sections[2])
    sx.pp.tissue_mask(sdata, mpp=0.5)
    sdata.labels["tissue"].data = np.zeros_like(np.asarray(sdata.labels["tissue"].data))
    with pytest.raises(ValueError, match="no position of a lattice"):
        sx.tl.predict_histology(sdata, model, encoder=colour, mpp=0.5)
    assert "histology" not in sdata.tables


def test_what_does_not_go_together_is_refused_before_features_are_made(
    sections: list[SpatialData], model: sx.tl.HistologyModel
) -> None:
    """Features may take hours."""
    new = section(2)

    def refused(said: str, how: Any, /, *arguments: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=said):
            how(*arguments, **options)
        assert "lattice_features" not in new.tables

    def other(tiles: np.ndarray) -> np.ndarray:
        return colour(tiles)

    pair = [sections[0], new]
    refused("encoder='other'", sx.tl.fit_histology, pair, encoder=other)
    refused(r"scales=\[1\]", sx.tl.fit_histology, pair, encoder=colour, scales=(1,))
    refused("groups='nobody'", sx.tl.cross_validate_histology, pair, groups="nobody", encoder=colour)
    new.tables["counts"].obs["tumour"] = "other"
    refused("no spot is of class", sx.tl.cross_validate_histology, pair, regions_key="tumour", encoder=colour)
    refused("encoder='other'", sx.tl.predict_histology, image_alone(new), model, encoder=other, mpp=0.5)
    sx.pp.tissue_mask(new, overwrite=True)
    new.labels["tissue"].data = np.zeros_like(np.asarray(new.labels["tissue"].data))
    first = section(1)
    refused("section 2 of 2.*lies on tissue", sx.tl.fit_histology, [first, new], encoder=colour)
    assert "lattice_features" not in first.tables


def test_which_image_is_meant_can_be_said_beside_spots(
    sections: list[SpatialData], model: sx.tl.HistologyModel
) -> None:
    old = sections[2]
    sdata = SpatialData(
        images={"he": old.images["image"], "dapi": old.images["image"]},
        shapes={"spots": old.shapes["spots"], "others": old.shapes["spots"]},
        tables={"counts": old.tables["counts"]},
    )
    sx.tl.predict_histology(sdata, model, encoder=colour, image_key="he", shapes_key="spots")
    assert sdata.tables["histology"].uns["histology"]["image_key"] == "he"
