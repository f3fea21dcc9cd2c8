"""Genes are judged on counts and at places that were not seen."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from spatialdata import SpatialData, read_zarr

import sphistex as sx
from sphistex.bags import Bags
from sphistex.grid import Grid
from sphistex.nn import FeatureMap, Spots
from sphistex.tl._inputs import Inputs
from sphistex.tl.validate import _smoothed

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


def test_only_var_is_noted_and_counts_stay_as_they_are_on_disk_and_in_memory(
    sdata: SpatialData, tmp_path: Path
) -> None:
    genes = list(sdata.tables["counts"].var_names[1:5])
    quick = QUICK | {"epochs": 2, "n_models": 1}
    sx.tl.predict(sdata, sx.tl.fit(sdata, genes=genes, **quick), overwrite=True)
    sdata.write(tmp_path / "section.zarr")
    section = read_zarr(tmp_path / "section.zarr")
    section["superres"].X = np.log1p(section["superres"].X)
    sx.tl.validate(section, by="halves", genes=genes[:3], **quick)
    stored = read_zarr(tmp_path / "section.zarr")["superres"]
    np.testing.assert_array_equal(stored.X, sdata["superres"].X)
    np.testing.assert_array_equal(section["superres"].X, np.log1p(sdata["superres"].X))
    for table in (stored, section["superres"]):
        assert isinstance(table.var["halves_verdict"].dtype, pd.CategoricalDtype)
        assert table.var["halves_verdict"].isna().tolist() == [False] * 3 + [True]


def test_interpolation_of_bins_needs_little_memory_and_finds_the_pattern() -> None:
    side = 110
    mask = np.ones((side, side), dtype=bool)
    xy_um = np.argwhere(mask)[:, ::-1] * np.float64(8.0)
    rate = 2 + np.sin(xy_um[:, :1] / 150)
    counts = np.random.default_rng(0).poisson(rate).astype(np.float32)
    bins = Spots(xy_um, np.full(side**2, 4.0), 8.0, counts)
    bags = Bags(sparse.identity(side**2, format="csr"), Grid((side * 8, side * 8), mpp=1.0))
    inputs = Inputs(FeatureMap(np.zeros((1, side, side)), mask), bags, bins)
    tracemalloc.start()
    found = _smoothed(inputs, inputs, mask.ravel(), seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 < 8 * side**4, "bytes"
    assert np.corrcoef(found.ravel(), rate.ravel())[0, 1] > 0.95


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
