"""Several sections get one model and a result each; a fitted model is applied to another, also without spots."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

import sphistex as sx

QUICK: dict[str, Any] = {
    "epochs": 3,
    "n_models": 2,
    "hidden": (16,),
    "context": (0, 2),
    "d": 8,
    "heads": 2,
    "device": "cpu",
}


def colour(tiles: np.ndarray) -> np.ndarray:
    n, height, width, _ = tiles.shape
    return tiles.reshape(n, height // 16, 16, width // 16, 16, 3).mean((2, 4)) / 255


def brightness(tiles: np.ndarray) -> np.ndarray:
    return colour(tiles).mean(-1, keepdims=True).repeat(3, -1)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    yield
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def tissue() -> SpatialData:
    """Two sections in one object; not to be changed."""
    return sx.datasets.simulate(size_um=650, n_genes=8, n_sections=2)


@pytest.fixture
def together(tissue: SpatialData) -> SpatialData:
    """Both sections in one object to add to."""
    kept = {f"counts_{i}": tissue.tables[f"counts_{i}"].copy() for i in "12"}
    return SpatialData(images=dict(tissue.images), shapes=dict(tissue.shapes), tables=kept)


def alone(tissue: SpatialData, number: int, *, spots: bool = True) -> SpatialData:
    """One of the sections in an object of its own."""
    image = Image2DModel.parse(tissue[f"image_{number}"].data, dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    if not spots:
        return SpatialData(images={"image": image})
    counts = tissue.tables[f"counts_{number}"]
    obs = counts.obs.assign(region=pd.Categorical(["spots"] * counts.n_obs), library_id=f"s{number}")
    table = TableModel.parse(
        ad.AnnData(counts.X.copy(), obs=obs, var=counts.var.copy()),
        region="spots",
        region_key="region",
        instance_key="spot_id",
    )
    disks = tissue[f"spots_{number}"]
    disks = ShapesModel.parse(gpd.GeoDataFrame({"radius": disks["radius"]}, geometry=disks.geometry.to_numpy()))
    return SpatialData(images={"image": image}, shapes={"spots": disks}, tables={"counts": table})


@pytest.fixture
def pair(tissue: SpatialData) -> list[SpatialData]:
    return [alone(tissue, 1), alone(tissue, 2)]


@pytest.fixture(scope="module")
def resolved(tissue: SpatialData) -> tuple[list[SpatialData], sx.tl.SuperResolver]:
    """Both sections with the results of one model; not to be changed."""
    both = [alone(tissue, 1), alone(tissue, 2)]
    return both, sx.tl.super_resolve(both, encoder=colour, **QUICK)


def elements_of(sdata: SpatialData) -> tuple[list[list[str]], dict]:
    kinds = ("images", "labels", "shapes", "tables")
    return [sorted(getattr(sdata, kind)) for kind in kinds], copy.deepcopy(sdata.attrs)


def test_every_section_gets_a_result_of_one_model(
    tissue: SpatialData, resolved: tuple[list[SpatialData], sx.tl.SuperResolver]
) -> None:
    both, model = resolved
    assert model.info["n_spots"] == sum(tissue.tables[f"counts_{i}"].n_obs for i in "12")
    for sdata in both:
        table = sdata.tables["superres"]
        assert table.n_obs == (np.asarray(sdata.labels["tissue"]) > 0).sum()
        assert {"verdict", "explained_share"} <= set(table.var.columns) or model.scores is None
        sx.tl.predict(sdata, model, key_added="again")
        np.testing.assert_allclose(sdata.tables["again"].X, table.X, rtol=1e-5, atol=1e-6)
        del sdata.tables["again"], sdata.labels["again_labels"]


def test_interrupted_between_two_results_the_same_call_makes_both(
    pair: list[SpatialData], resolved: tuple[list[SpatialData], sx.tl.SuperResolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sphistex.tl import predict

    module = sys.modules["sphistex.tl.super_resolve"]
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        sys.modules[predict.__module__].predict_section(*args, **kwargs)  # type: ignore[attr-defined]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "predict_section", interrupted)
        sx.tl.super_resolve(pair, encoder=colour, **QUICK)
    assert ["superres" in sdata.tables for sdata in pair] == [True, False]
    sx.tl.super_resolve(pair, encoder=colour, **QUICK)
    for sdata, expected in zip(pair, resolved[0], strict=True):
        np.testing.assert_array_equal(sdata.tables["superres"].X, expected.tables["superres"].X)
    with pytest.raises(ValueError, match="exists"):  # what is done is not replaced
        sx.tl.super_resolve(pair, encoder=colour, **QUICK)


def test_sections_of_one_object_give_the_same(
    together: SpatialData, resolved: tuple[list[SpatialData], sx.tl.SuperResolver]
) -> None:
    named = {i: {"image_key": f"image_{i}", "shapes_key": f"spots_{i}"} for i in "12"}
    sx.tl.super_resolve(together, sections=named, encoder=colour, **QUICK)
    for number, sdata in zip("12", resolved[0], strict=True):
        np.testing.assert_array_equal(together[f"superres_{number}"].X, sdata["superres"].X)
        made = together[f"superres_{number}"].uns[f"superres_{number}"]
        assert made["features_key"] == f"superpixel_features_{number}"
        assert made["section"]["shapes_key"] == f"spots_{number}"
    model = sx.tl.fit(together, sections=named, **QUICK)
    assert model.info["n_sections"] == 2


@pytest.mark.parametrize("one_table", [True, False])
def test_a_concatenated_object_is_split_by_a_column(
    pair: list[SpatialData], resolved: tuple[list[SpatialData], sx.tl.SuperResolver], one_table: bool
) -> None:
    both = sd.concatenate({"s1": pair[0], "s2": pair[1]}, concatenate_tables=one_table)
    sx.tl.super_resolve(both, sections="library_id", encoder=colour, **QUICK)
    for number, sdata in zip("12", resolved[0], strict=True):
        np.testing.assert_array_equal(both[f"superres_s{number}"].X, sdata["superres"].X)


def test_a_section_that_was_not_fitted_uses_its_own_spots(
    tissue: SpatialData, resolved: tuple[list[SpatialData], sx.tl.SuperResolver]
) -> None:
    other = alone(tissue, 2)
    other.tables["counts"].X = other.tables["counts"].X * 4
    sx.tl.superpixel_features(other, encoder=colour)
    sx.tl.predict(other, resolved[1])
    table = other.tables["superres"]
    np.testing.assert_allclose(table.X.sum(), 4 * resolved[0][1]["superres"].X.sum(), rtol=0.1)
    assert "verdict" not in table.var
    assert table.uns["superres"]["spots"]


# ------------------------------------------------------------------------------------------------ only an image


def test_an_image_alone_gets_a_result_of_the_same_kind(
    tissue: SpatialData, resolved: tuple[list[SpatialData], sx.tl.SuperResolver], tmp_path: Path
) -> None:
    sdata = alone(tissue, 2, spots=False)
    sdata.shapes["regions"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 500, 500)]))  # no spots
    sx.tl.superpixel_features(sdata, encoder=colour, mpp=0.5)
    sx.tl.predict(sdata, resolved[1])
    table, whole = sdata.tables["superres"], resolved[0][1].tables["superres"]
    assert table.shape == whole.shape
    assert table.X.min() >= 0
    assert list(table.var_names) == list(whole.var_names)
    np.testing.assert_array_equal(table.obsm["spatial"], whole.obsm["spatial"])
    assert not table.obs["in_spot"].any()
    made = table.uns["superres"]
    assert not made["spots"]
    assert "only an image" in made["calibration"]["missing"]
    assert (table.var["image_share"] == 1).all()
    sdata.write(tmp_path / "image.zarr")
    assert not sd.read_zarr(tmp_path / "image.zarr")["superres"].uns["superres"]["spots"]
    sx.pl.features(sdata, return_fig=True)
    figure: Any = sx.pl.expression(sdata, table.var_names[:1], return_fig=True)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["H&E", "sphistex, 8 µm"], "there are no spots to draw"
    with pytest.raises(ValueError, match="only an image"):
        sx.tl.confidence(sdata, table.var_names[:1])


def test_what_needs_spots_is_refused_without(
    tissue: SpatialData, resolved: tuple[list[SpatialData], sx.tl.SuperResolver]
) -> None:
    sdata, model = alone(tissue, 2, spots=False), resolved[1]
    with pytest.raises(ValueError, match="mpp=None"):
        sx.tl.predict(sdata, model)
    with pytest.raises(KeyError, match="tissue_key='tissue'"):
        sx.tl.predict(sdata, model, mpp=0.5)
    sx.tl.superpixel_features(sdata, encoder=colour, mpp=0.5)
    with pytest.raises(ValueError, match="conserve_counts=True"):
        sx.tl.predict(sdata, model, conserve_counts=True)
    with pytest.raises(ValueError, match="mpp=-1"):
        sx.tl.predict(sdata, model, mpp=-1)
    blind = sx.tl.fit(resolved[0], **QUICK | {"spotless": 0.0, "epochs": 1})
    with pytest.raises(ValueError, match="spotless=0"):
        sx.tl.predict(sdata, blind)
    with pytest.raises(ValueError, match="section 2 of 2: .*shapes"):
        sx.tl.fit([resolved[0][0], sdata], **QUICK)
    assert not sdata.tables


# --------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_set_of_sections_is_refused(pair: list[SpatialData], together: SpatialData) -> None:
    with pytest.raises(ValueError, match="holds no section"):
        sx.tl.super_resolve([], encoder=colour)
    with pytest.raises(ValueError, match="twice"):
        sx.tl.super_resolve([pair[0], pair[0]], encoder=colour)
    with pytest.raises(TypeError, match="'str'"):
        sx.tl.super_resolve([pair[0], "section.zarr"], encoder=colour)  # type: ignore[list-item]
    for wrong in ("section.zarr", None, {"A": pair[0]}):
        with pytest.raises(TypeError, match=f"spatialdata.read_zarr, or a list of them, not {type(wrong).__name__}"):
            sx.tl.super_resolve(wrong, encoder=colour)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one SpatialData, but 2"):
        sx.tl.super_resolve(pair, sections="library_id", encoder=colour)
    with pytest.raises(TypeError, match=r"sections\['A'\]=.*'image_1'.*must be a dict"):
        sx.tl.super_resolve(together, sections={"A": {"image": "image_1"}}, encoder=colour)
    with pytest.raises(KeyError, match="sections='sample' is a column of no table"):
        sx.tl.super_resolve(together, sections="sample", encoder=colour)
    same = {"image_key": "image_1", "shapes_key": "spots_1"}
    with pytest.raises(ValueError, match="section 'A' and section 'B' have the same spots 'spots_1'"):
        sx.tl.super_resolve(together, sections={"A": same, "B": same}, encoder=colour)
    assert not together.labels


def test_sections_whose_spots_differ_in_kind_are_refused(pair: list[SpatialData]) -> None:
    pair[1].attrs["sphistex"] = {"input": {"spots": {"pitch_um": 200.0}}}
    with pytest.raises(ValueError, match="section 1 of 2: 100 µm, section 2 of 2: 200 µm"):
        sx.tl.super_resolve(pair, encoder=colour)


@pytest.mark.parametrize("bad", ["few spots on tissue", "a result of that name", "other genes", "negative counts"])
def test_no_section_is_changed_where_one_cannot_be_used(pair: list[SpatialData], bad: str) -> None:
    second = pair[1]
    counts = second.tables["counts"]
    message = "section 2 of 2"
    if bad == "few spots on tissue":
        mask = np.zeros((82, 82), dtype=np.uint8)
        mask[:10, :10] = 1
        sx.pp.tissue_mask(second, mask=mask)
        message += ": only"
    elif bad == "a result of that name":
        second.tables["superres"] = counts.copy()
        message += ": .*key_added='superres'"
    elif bad == "other genes":
        counts.var_names = [f"ENSG{i}" for i in range(counts.n_vars)]
        message = "no gene in common"
    else:
        counts.X = -counts.X
        message += ": .*negative"
    before = [elements_of(sdata) for sdata in pair]
    with pytest.raises(ValueError, match=message):
        sx.tl.super_resolve(pair, encoder=colour, table_key="counts", **QUICK)
    assert [elements_of(sdata) for sdata in pair] == before


def test_genes_are_those_of_all_sections(pair: list[SpatialData]) -> None:
    for sdata in pair:
        sx.tl.superpixel_features(sdata, encoder=colour)
    first, second = (sdata.tables["counts"] for sdata in pair)
    lacking = str(first.var_names[3])
    pair[1].tables["counts"] = second[:, [name for name in second.var_names[::-1] if name != lacking]].copy()
    with pytest.warns(UserWarning, match=f"1 genes that not all sections have are left out: {lacking}"):
        model = sx.tl.fit(pair, **QUICK | {"epochs": 1})
    assert sorted(model.genes) == sorted(set(first.var_names) - {lacking})
    with pytest.raises(KeyError, match=f"section 2 of 2: .*'{lacking}'"):
        sx.tl.fit(pair, genes=[lacking], **QUICK)


def test_features_of_different_encoders_are_refused(pair: list[SpatialData]) -> None:
    sx.tl.superpixel_features(pair[0], encoder=colour)
    sx.tl.superpixel_features(pair[1], encoder=brightness)
    with pytest.raises(ValueError, match="section 1 of 2 were made with encoder='colour', those of section 2 of 2"):
        sx.tl.fit(pair, **QUICK)
    del pair[0].images["superpixel_features"], pair[0].labels["tissue"], pair[0].attrs["sphistex"]
    with pytest.raises(ValueError, match="section 2 of 2: .*was made with encoder='brightness', not 'colour'"):
        sx.tl.super_resolve(pair, encoder=colour, **QUICK)
    assert not pair[0].labels, "nothing was made in vain"
