"""Patterns before and after are those that squidpy finds, and the null knows nothing of the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import squidpy as sq
from scipy import sparse
from spatialdata import SpatialData
from xarray import DataArray

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.tl._bins import Places, bins_of, measured_places
from sphistex.tl._pattern_statistics import fine_structure, sepal
from sphistex.tl._shuffled import _shuffled, shuffled_result


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    yield
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def sdata(cache) -> SpatialData:
    sdata = sx.datasets.simulate(size_um=900, n_genes=20, seed=1)
    sx.tl.super_resolve(sdata, encoder=colours, n_models=1, epochs=20, device="cpu", seed=3)
    return sdata


@pytest.fixture(scope="module")
def found(sdata) -> pd.DataFrame:
    with pytest.warns(UserWarning, match="not judged by spots that were left out"):
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
    assert list(found.columns) == ["gene", "statistic", "before", "after", "null", "beyond"]
    in_spots = found["statistic"] != "fine"
    assert len(found) == 12 and found.drop(columns="before").notna().all(axis=None)
    np.testing.assert_array_equal(found["before"].notna(), in_spots)
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


@pytest.mark.slow
def test_only_an_image_that_shows_something_brings_what_is_beyond_its_null(cache):
    beyond = []
    for shuffle in (False, True):
        sdata = sx.datasets.simulate(size_um=1200, n_genes=20, seed=1)
        if shuffle:
            sdata.images["image"] = in_tiles(sdata.images["image"])
        sx.tl.super_resolve(sdata, encoder=colours, n_models=2, epochs=20, device="cpu", seed=3)
        found = sx.tl.spatial_patterns(sdata, genes="all", statistics="fine", seed=1)
        beyond.append(found["beyond"].mean())
    assert beyond[0] > 0.5 and beyond[1] == 0


def in_tiles(image: DataArray) -> DataArray:
    """The image with its tiles of 64 µm, those of tissue, dealt out anew."""
    side, values = 128, np.asarray(image.data)
    rows, columns = (n // side for n in values.shape[1:])
    inside = values[:, : rows * side, : columns * side]
    tiles = inside.reshape(3, rows, side, columns, side).transpose(1, 3, 0, 2, 4).copy()
    tissue = np.argwhere(tiles.min(2).mean((2, 3)) < 220)
    tiles[tuple(tissue.T)] = tiles[tuple(np.random.default_rng(0).permutation(tissue).T)]
    shuffled = values.copy()
    shuffled[:, : rows * side, : columns * side] = tiles.transpose(2, 0, 3, 1, 4).reshape(inside.shape)
    return image.copy(data=da.from_array(shuffled, chunks=image.data.chunksize))


def square(side: int) -> Places:
    places = np.argwhere(np.ones((side, side)))[:, ::-1].astype(float)
    return Places(sparse.csc_array((0, 0)), places, 1.0, "square")


def test_fine_structure_is_what_is_patterned_below_the_width():
    bins = square(80)
    noise = np.random.default_rng(0).normal(size=len(bins.xy))
    fine, broad = (np.sin(2 * np.pi * bins.xy[:, 0] / period) for period in (8, 80))
    values = np.stack([fine, 2 * fine, fine + broad, broad, noise], 1).astype(np.float32)
    once, twice, both, coarse, none = fine_structure(bins, values, 6.0)
    np.testing.assert_allclose([twice, both], [2 * once, once], rtol=0.03)
    assert 0.4 < once < np.sqrt(0.5) and max(coarse, none) < 0.1 * once


@pytest.mark.parametrize("side", [20, 60])
def test_sepal_tells_waves_from_noise_on_few_places_and_on_many(side: int):
    bins = square(side)
    wave = np.sin(2 * np.pi * bins.xy[:, 1] / 20)
    noise = np.random.default_rng(0).normal(size=(side**2, 2))
    values = np.log1p(50 * np.exp(0.5 * np.stack([noise[:, 0], wave + noise[:, 1], 2 * wave], 1)))
    scores = sepal(bins, values.astype(np.float32))
    assert (np.diff(scores) > 0).all() and scores[2] > 5 * scores[0]


def test_sepal_of_a_pattern_grows_with_its_area_in_places():
    scores = []
    for side in (20, 40):
        bins = square(side)
        wave = np.cos(2 * np.pi * (bins.xy[:, [0]] + 0.5) / side)
        scores.append(sepal(bins, (3 + wave).astype(np.float32))[0])
    # diffusion is at rest at a rate, which falls as the area grows: a little less than four times
    assert 2.5 < scores[1] / scores[0] < 4


def test_sepal_takes_tissue_of_any_shape():
    bins = square(9)
    # a cross, whose border touches its inside everywhere, and one bin
    for kept in ((np.abs(bins.xy - 4) <= 1).any(1), (bins.xy == 4).all(1)):
        shape = replace(bins, xy=bins.xy[kept])
        assert np.isfinite(sepal(shape, bins.xy[kept, :1].astype(np.float32))).all()


def test_bins_of_visium_hd_are_pooled_where_superpixels_are(sdata):
    table, truth = sdata.tables["superres"], sdata.tables["truth"]
    section, made = resolve_section(sdata), table.uns["superres"]
    xy = np.asarray(truth.obsm["spatial"])
    fine = replace(section, xy_px=xy, outlines_px=np.empty(len(xy), dtype=object), table=truth)
    bins, factor = bins_of(table, 8.0, 64)
    measured = measured_places(sdata, made, fine, bins, factor)
    origin = (np.asarray(made["crop"]) * 16)[::-1]
    for place in (0, len(bins.xy) // 2):
        inside = (np.floor((xy - origin) / (16 * factor)) == bins.xy[place]).all(1)
        expected = truth.X[inside].sum(0)
        np.testing.assert_allclose((measured.pool @ truth.X)[[place]].toarray(), np.asarray(expected).reshape(1, -1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table_key": "counts"}, ValueError, "not a result"),
        ({"genes": ["NOPE"]}, KeyError, "NOPE"),
        ({"statistics": ["ripley"]}, ValueError, r"statistics=\['ripley'\]"),
        ({"bin_um": 20}, ValueError, "bin_um=20 must be a multiple of 8 µm"),
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
