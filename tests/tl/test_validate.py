"""Genes are judged on counts and at places that were not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from spatialdata import SpatialData

import sphistex as sx

QUICK: dict[str, Any] = {"layers": 0, "hidden": (32,), "context": (0, 2), "epochs": 30, "device": "cpu"}


def colour(tiles: np.ndarray) -> np.ndarray:
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // 16, 16, width // 16, 16, 3).astype(np.float32)
    return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], axis=-1)


@pytest.fixture(scope="module")
def sdata(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpatialData]:
    """A section with features, and a gene whose counts are drawn at random."""
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    sdata = sx.datasets.simulate(size_um=1200, n_genes=12, seed=1)
    counts = sdata.tables["counts"].X.toarray()
    counts[:, 0] = np.random.default_rng(0).permutation(counts[:, 0])
    sdata.tables["counts"].X = sparse.csr_matrix(counts)
    sx.tl.superpixel_features(sdata, encoder=colour)
    yield sdata
    sx.settings.cache_dir, sx.settings.progress = before


def test_what_the_image_shows_is_explained_and_noise_is_not(sdata: SpatialData) -> None:
    found = sx.tl.validate(sdata, block_um=300, **QUICK)
    assert set(found.by) == {"halves", "blocks"}
    for _, scores in found.groupby("by"):
        assert scores.pearson.iloc[0] < 0.35, "a gene of noise"
        assert scores.explained_share.iloc[1:].median() > 0.6
    blocks = found[found.by == "blocks"]
    assert (blocks.pearson.iloc[1:] > blocks.interpolation.iloc[1:]).mean() > 0.6
    assert blocks.verdict.iloc[0] == "as chance"


def test_the_result_carries_it(sdata: SpatialData) -> None:
    model = sx.tl.fit(sdata, genes=list(sdata.tables["counts"].var_names[1:5]), **QUICK)
    sx.tl.predict(sdata, model, overwrite=True)
    found = sx.tl.validate(sdata, by="halves", **QUICK)
    var = sdata.tables["superres"].var
    assert list(found.index) == list(var.index), "the genes of the result"
    np.testing.assert_array_equal(var["halves_pearson"], found.pearson)


def test_same_seed_same_verdict(sdata: SpatialData) -> None:
    quick = QUICK | {"epochs": 3}
    a, b, c = (sx.tl.validate(sdata, by="blocks", block_um=300, seed=seed, **quick) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.pearson, b.pearson)
    assert (a.pearson != c.pearson).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "thirds"}, "by='thirds' must be"),
        ({"by": []}, "by="),
        ({"block_um": -1.0}, "block_um=-1.0 must be"),
        ({"by": "blocks", "block_um": 1e5}, "spots lie on tissue"),
        ({"genes": ["none"]}, "none"),
        ({"features_key": "other"}, "features_key='other'"),
    ],
)
def test_bad_arguments_are_refused_before_any_fit(sdata: SpatialData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((KeyError, ValueError), match=message):
        sx.tl.validate(sdata, **arguments)


def test_fractions_cannot_be_split(sdata: SpatialData) -> None:
    part = SpatialData.init_from_elements({name: element for _, name, element in sdata.gen_elements()})
    part.attrs = sdata.attrs
    part.tables["counts"] = sdata.tables["counts"].copy()
    part.tables["counts"].X = part.tables["counts"].X * 0.5
    with pytest.warns(UserWarning, match="normalised"), pytest.raises(ValueError, match='not whole numbers.*"blocks"'):
        sx.tl.validate(part)
