"""Patterns before and after are those that squidpy finds, and the null knows nothing of the image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import squidpy as sq
from spatialdata import SpatialData

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.tl._shuffled import _shuffled, shuffled_result


@pytest.fixture(scope="module")
def sdata(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpatialData]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    sdata = sx.datasets.simulate(size_um=900, n_genes=20, seed=1)
    sx.tl.super_resolve(sdata, encoder=colours, n_models=1, epochs=20, device="cpu", seed=3)
    yield sdata
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def found(sdata) -> pd.DataFrame:
    return sx.tl.spatial_patterns(sdata, genes=3)


def colours(tiles: np.ndarray) -> np.ndarray:
    """Mean and spread of the colours of every patch: quick, and enough to tell compartments apart."""
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // 16, 16, width // 16, 16, 3).astype(np.float32)
    return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], axis=-1)


def test_shuffling_moves_every_vector_and_loses_none(sdata, tmp_path):
    features, mask = sdata.images["superpixel_features"], np.asarray(sdata.labels["tissue"]) > 0
    before, after = (np.asarray(one.data)[:, mask].T for one in (features, _shuffled(features, mask, tmp_path, seed=0)))
    np.testing.assert_array_equal(np.sort(after, axis=0), np.sort(before, axis=0))
    assert (np.abs(before - after).max(1) > 0).mean() > 0.99


def test_the_null_knows_the_spots_and_nothing_of_the_image(sdata):
    table, truth = sdata.tables["superres"], sdata.tables["truth"]
    made, names = table.uns["superres"], list(sdata.tables)
    with shuffled_result(sdata, table, made, resolve_section(sdata), seed=0) as without:
        shuffled = without.to_memory(copy=True)
    assert list(sdata.tables) == names and shuffled.shape == table.shape
    assert not any(sx.settings.cache_dir.glob("shuffled-*"))
    parameters = shuffled.uns["shuffled"]["params"]
    assert all(np.array_equal(made["params"][name], parameters[name]) for name in made["params"])
    expected = np.asarray(truth.layers["expected"])
    place = {tuple(xy): i for i, xy in enumerate(truth.obsm["spatial"])}
    both = np.array([place.get(tuple(xy), -1) for xy in table.obsm["spatial"]])
    r = [_mean_r(np.asarray(one.X)[both >= 0], expected[both[both >= 0]]) for one in (table, shuffled)]
    # what interpolating the spots shows is there, what the image shows is not
    assert r[0] > r[1] + 0.1 and r[1] > 0.1


def _mean_r(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(found.T, true.T, strict=True)]))


def test_statistics_are_those_of_squidpy(sdata, found):
    assert list(found.columns) == ["gene", "statistic", "before", "after", "null"]
    assert len(found) == 9 and found.notna().all(axis=None)
    spots = sdata.tables["counts"].copy()
    sc.pp.normalize_total(spots, target_sum=1e4)
    sc.pp.log1p(spots)
    sq.gr.spatial_neighbors(spots, coord_type="grid", n_neighs=6)
    for statistic, column in (("moran", "I"), ("geary", "C")):
        expected = sq.gr.spatial_autocorr(spots, mode=statistic, copy=True, n_jobs=1)[column]
        own = found[found["statistic"] == statistic].set_index("gene")["before"]
        np.testing.assert_allclose(own, expected[own.index], rtol=1e-4)
    # the null is judged in the same bins
    moran = found[found["statistic"] == "moran"]
    assert moran["null"].between(-1, 1).all() and (moran["null"] != moran["after"]).all()


def test_after_is_judged_on_sums_of_superpixels(sdata):
    table = sdata.tables["superres"]
    found = sx.tl.spatial_patterns(sdata, genes=3, statistics="moran", bin_um=8, null=False).set_index("gene")
    assert found["null"].isna().all()
    single = table.copy()
    sc.pp.normalize_total(single, target_sum=1e4)
    sc.pp.log1p(single)
    sq.gr.spatial_neighbors(single, coord_type="grid", n_neighs=4)
    expected = sq.gr.spatial_autocorr(single, mode="moran", genes=list(found.index), copy=True, n_jobs=1)["I"]
    np.testing.assert_allclose(found["after"], expected[found.index], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table_key": "counts"}, ValueError, "not a result"),
        ({"genes": ["NOPE"]}, KeyError, "NOPE"),
        ({"statistics": ["ripley"]}, ValueError, r"statistics=\['ripley'\]"),
        ({"bin_um": 20}, ValueError, "bin_um=20 must be a multiple of 8 µm"),
        ({"bin_um": 400}, ValueError, "bin_um=400: sepal needs places with 4 neighbours"),
        ({"bin_um": 4000}, ValueError, "no bin of this size"),
    ],
)
def test_mistakes_are_named(sdata, arguments, error, message):
    with pytest.raises(error, match=message):
        sx.tl.spatial_patterns(sdata, **arguments)


def test_a_null_needs_the_feature_map_and_the_whole_result(sdata):
    cut = SpatialData.init_from_elements({name: element for _, name, element in sdata.gen_elements()})
    cut.tables["superres"] = sdata.tables["superres"][:-20].copy()
    with pytest.raises(ValueError, match="has been cut.*null=False"):
        sx.tl.spatial_patterns(cut, genes=3, statistics="moran")
    del cut.images["superpixel_features"]
    with pytest.raises(KeyError, match="'superpixel_features'.*null=False"):
        sx.tl.spatial_patterns(cut, genes=3, statistics="moran")
