"""A model is fitted once, saved, and applied only to what it was made for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from spatialdata import SpatialData

import sphistex as sx
from sphistex.nn import residuals
from sphistex.tl.predict import share_out

QUICK: dict[str, Any] = {"epochs": 3, "n_models": 2, "hidden": (16,), "context": (0, 2), "layers": 0, "device": "cpu"}


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
def prepared() -> SpatialData:
    """A section with mask and features; not to be changed."""
    sdata = sx.datasets.simulate(size_um=650, n_genes=6)
    sx.tl.superpixel_features(sdata, encoder=colour)
    return sdata


@pytest.fixture
def sdata(prepared: SpatialData) -> SpatialData:
    """A copy to add results to."""
    part = SpatialData(
        images=dict(prepared.images), labels={"tissue": prepared.labels["tissue"]},
        shapes={"spots": prepared.shapes["spots"]}, tables={"counts": prepared.tables["counts"].copy()},
    )  # fmt: skip
    part.attrs = copy.deepcopy(prepared.attrs)
    return part


@pytest.fixture(scope="module")
def model(prepared: SpatialData) -> sx.tl.SuperResolver:
    return sx.tl.fit(prepared, **QUICK)


def test_fitting_changes_nothing(sdata: SpatialData) -> None:
    before = (
        [sorted(getattr(sdata, kind)) for kind in ("images", "labels", "shapes", "tables")],
        copy.deepcopy(sdata.attrs),
    )
    counts = sdata.tables["counts"].X.copy()
    sx.tl.fit(sdata, **QUICK)
    after = [sorted(getattr(sdata, kind)) for kind in ("images", "labels", "shapes", "tables")], sdata.attrs
    assert after == before
    assert (counts != sdata.tables["counts"].X).sum() == 0


def test_the_model_knows_what_it_was_made_from(model: sx.tl.SuperResolver) -> None:
    assert model.encoder["encoder"] == "colour"
    assert model.encoder["dim"] == 3
    assert model.info["n_spots"] >= 20
    assert model.parameters.n_models == 2


def test_the_steps_give_what_super_resolve_gives(sdata: SpatialData, model: sx.tl.SuperResolver) -> None:
    sx.tl.predict(sdata, model, key_added="steps")
    sx.tl.super_resolve(sdata, encoder=colour, key_added="at_once", **QUICK)
    np.testing.assert_allclose(sdata.tables["steps"].X, sdata.tables["at_once"].X, rtol=1e-5, atol=1e-6)


def test_saved_and_loaded_it_predicts_the_same(sdata: SpatialData, model: sx.tl.SuperResolver, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    sx.tl.predict(sdata, model, key_added="before")
    sx.tl.predict(sdata, sx.tl.SuperResolver.load(tmp_path / "model"), key_added="after")
    np.testing.assert_allclose(sdata.tables["after"].X, sdata.tables["before"].X, rtol=1e-6)


def test_residuals_are_chosen_with_the_seed_of_the_fit(
    sdata: SpatialData, model: sx.tl.SuperResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residuals, "_MAX_SPOTS_FOR_CHOICE", 8)
    for seed in (0, 3):
        sx.tl.predict(sdata, replace(model, info=model.info | {"seed": seed}), key_added=f"seed_{seed}")
    assert not np.array_equal(sdata.tables["seed_0"].X, sdata.tables["seed_3"].X)


def test_a_section_without_the_genes_is_refused(sdata: SpatialData, model: sx.tl.SuperResolver) -> None:
    missing = sdata.tables["counts"].var_names[2]
    others = [name for name in sdata.tables["counts"].var_names if name != missing]
    sdata.tables["counts"] = sdata.tables["counts"][:, others].copy()
    with pytest.raises(KeyError, match=f"1 of 6 genes.*'{missing}'"):
        sx.tl.predict(sdata, model)
    assert "superres" not in sdata.tables


def test_genes_are_found_by_name_whatever_their_order(sdata: SpatialData, model: sx.tl.SuperResolver) -> None:
    sx.tl.predict(sdata, model, key_added="plain")
    sdata.tables["counts"] = sdata.tables["counts"][:, ::-1].copy()
    sx.tl.predict(sdata, model, key_added="reversed")
    plain, other = sdata.tables["plain"], sdata.tables["reversed"]
    np.testing.assert_allclose(other[:, plain.var_names].X, plain.X, rtol=1e-6)


def test_features_of_another_encoder_are_refused(sdata: SpatialData, model: sx.tl.SuperResolver) -> None:
    sx.tl.superpixel_features(sdata, encoder=brightness, key_added="grey")
    with pytest.raises(ValueError, match="features_key='grey'.*encoder='brightness'.*'colour'"):
        sx.tl.predict(sdata, model, features_key="grey")
    assert "superres" not in sdata.tables
    assert "superres_labels" not in sdata.labels


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features_key": "absent"}, KeyError, "features_key='absent'.*superpixel_features"),
        ({"tissue_key": "absent"}, KeyError, "tissue_key='absent'.*tissue_mask"),
        ({"features_key": "image"}, ValueError, "features_key='image'"),
    ],
)
def test_what_is_missing_is_named(sdata: SpatialData, model: sx.tl.SuperResolver, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        sx.tl.fit(sdata, **QUICK, **arguments)
    with pytest.raises(error, match=message):
        sx.tl.predict(sdata, model, **arguments)
    assert "superres" not in sdata.tables


@pytest.mark.parametrize("key", ["counts", "image", "a/b", "spots"])
def test_names_that_are_taken_or_impossible(sdata: SpatialData, model: sx.tl.SuperResolver, key: str) -> None:
    with pytest.raises(ValueError, match=f"key_added='{key}'"):
        sx.tl.predict(sdata, model, key_added=key, overwrite=True)


# ------------------------------------------------------------------------------------------ conserving counts


@pytest.mark.parametrize("overlap", [False, True])
def test_shared_out_counts_add_up_and_keep_their_pattern(overlap: bool) -> None:
    rng = np.random.default_rng(0)
    weights = sparse.lil_matrix((4, 40))
    for spot in range(4):
        first = 9 * spot if overlap else 10 * spot
        weights[spot, first : first + 10] = rng.uniform(0.2, 1, 10)
    weights = weights.tocsr()
    counts = rng.gamma(2, 1, (40, 3)).astype(np.float32)
    before, measured = counts.copy(), rng.integers(1, 50, (4, 3)).astype(np.float32)
    share_out(counts, weights, measured)
    np.testing.assert_allclose(weights @ counts, measured, rtol=1e-4)
    assert (counts >= 0).all()
    outside = np.asarray(weights.sum(0)).ravel() == 0
    np.testing.assert_array_equal(counts[outside], before[outside])
    if not overlap:
        ratio = counts[:10] / before[:10]
        np.testing.assert_allclose(ratio, ratio[:1].repeat(10, 0), rtol=1e-4)


def test_a_gene_that_was_measured_but_not_predicted_is_spread_evenly() -> None:
    weights = sparse.csr_matrix(np.array([[1.0, 0.5, 0.0]]))
    counts = np.zeros((3, 1), np.float32)
    share_out(counts, weights, np.array([[6.0]], np.float32))
    np.testing.assert_allclose(counts.ravel(), [4, 4, 0])


def test_a_gene_that_was_not_measured_in_a_spot_is_not_in_it() -> None:
    weights = sparse.csr_matrix(np.array([[1.0, 1.0, 0.0]]))
    counts = np.ones((3, 1), np.float32)
    share_out(counts, weights, np.array([[0.0]], np.float32))
    np.testing.assert_allclose(counts.ravel(), [0, 0, 1])
