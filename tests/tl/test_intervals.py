"""How certain a result says it is, against the truth of a simulated section."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData, read_zarr

import sphistex as sx
from sphistex.metrics import coarsen, coverage, lattice
from sphistex.tl._trust import calibration_of, gene_table

QUICK: dict[str, Any] = {"layers": 0, "hidden": (32,), "context": (0, 2), "epochs": 40, "device": "cpu"}


def colour(tiles: np.ndarray) -> np.ndarray:
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // 16, 16, width // 16, 16, 3).astype(np.float32)
    return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], axis=-1)


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpatialData]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    sdata = sx.datasets.simulate(size_um=1500, n_genes=24, seed=3)
    with pytest.warns(UserWarning, match="no better than"):
        sx.tl.super_resolve(sdata, encoder=colour, **QUICK)
    yield sdata
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def model(resolved: SpatialData) -> sx.tl.SuperResolver:
    """A model that has hardly learnt anything."""
    return sx.tl.fit(resolved, **QUICK | {"epochs": 2})


def holding(table: AnnData, key: str = "superres") -> SpatialData:
    """The table alone, as a user may have changed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that its labels are missing
        return SpatialData(tables={key: table})


def truth(sdata: SpatialData, factor: int, layer: str | None) -> NDArray:
    """Sums of the truth over the squares of a result, (n_squares, n_genes)."""
    table = sdata.tables["superres"]
    row, column = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    true = sdata.tables["truth"][:, table.var_names]
    values = true.X.toarray() if layer is None else true.layers[layer]
    first = table.uns["superres"]["crop"]
    place = {(r, c): i for i, (r, c) in enumerate(true.obs[["array_row", "array_col"]].to_numpy())}
    order = [place.get((r + first[0], c + first[1]), -1) for r, c in zip(row, column, strict=True)]
    maps = np.zeros((row.max() + 1, column.max() + 1, table.n_vars))
    maps[row, column] = np.where(np.array(order)[:, None] >= 0, values[order], 0)
    mask = np.zeros(maps.shape[:2], dtype=bool)
    mask[row, column] = True
    return coarsen(maps, mask, factor)[0]


@pytest.mark.parametrize("scale_um", [16, 32, 64])
def test_intervals_hold_the_counts_that_are_measured(resolved: SpatialData, scale_um: int) -> None:
    found = sx.tl.confidence(resolved, scale_um=scale_um)
    held = coverage(found.layers["lower"], found.layers["upper"], truth(resolved, scale_um // 8, None), found.X)
    assert held.coverage[0] == pytest.approx(0.9, abs=0.05)


def test_intervals_hold_where_little_is_expected_and_where_much_is(resolved: SpatialData) -> None:
    found = sx.tl.confidence(resolved, scale_um=32)
    held = coverage(found.layers["lower"], found.layers["upper"], truth(resolved, 4, None), found.X)
    deciles = held[(held.bin != "all") & (held.expected >= 0.5)]
    assert len(deciles) > 4
    assert deciles.coverage.between(0.8, 0.97).all(), deciles


def test_intervals_hold_the_expression_behind_the_counts(resolved: SpatialData) -> None:
    found = sx.tl.confidence(resolved, scale_um=32, of="expression")
    held = coverage(found.layers["lower"], found.layers["upper"], truth(resolved, 4, "expected"), found.X)
    assert held.coverage[0] == pytest.approx(0.9, abs=0.06)


def test_few_calls_are_false_and_more_are_made_where_more_may_be(resolved: SpatialData) -> None:
    genes = list(resolved.tables["superres"].var_names[::3])
    expression = truth(resolved, 2, "expected")[:, ::3]
    mean = resolved.tables["superres"].var["mean_count"].to_numpy()[::3]
    calls = {}
    for fdr in (0.05, 0.2):
        found = sx.tl.confidence(resolved, genes, scale_um=16, fdr=fdr, of="expression")
        called = found.layers["called"]
        below = expression <= mean * found.obs["n_superpixels"].to_numpy()[:, None]
        calls[fdr] = called.sum()
        assert (below & called).sum() / called.sum() < fdr + 0.05
    assert 0 < calls[0.05] < calls[0.2]


def test_a_higher_threshold_leaves_fewer_calls(resolved: SpatialData) -> None:
    gene = resolved.tables["superres"].var["mean_count"].idxmax()
    low, high = (sx.tl.confidence(resolved, gene, above=above).layers["called"].sum() for above in (0.01, 5.0))
    assert low > high


def test_squares_are_those_of_the_superpixels(resolved: SpatialData) -> None:
    table = resolved.tables["superres"]
    one = sx.tl.confidence(resolved, list(table.var_names[:2]))
    order = np.lexsort((table.obs["array_col"], table.obs["array_row"]))
    np.testing.assert_allclose(one.obsm["spatial"], table.obsm["spatial"][order])
    np.testing.assert_allclose(one.X, table[order, one.var_names].X, rtol=1e-5)
    wide = sx.tl.confidence(resolved, list(table.var_names[:2]), scale_um=32)
    assert wide.X.sum() == pytest.approx(one.X.sum(), rel=0.1)
    sc.pp.log1p(wide)  # an ordinary table
    np.testing.assert_array_equal(np.diff(np.unique(wide.obsm["spatial"][:, 0])).min(), 64)  # pixels of 0.5 µm


def test_what_a_gene_can_be_trusted_for_is_in_var(resolved: SpatialData) -> None:
    var = resolved.tables["superres"].var
    assert var["held_out_pearson"].between(-1, 1).all()
    assert set(var["trusted_scale_um"].dropna()) <= {8.0, 16.0, 32.0, 64.0}
    sure = var["trusted_scale_um"].fillna(np.inf) <= 16
    assert sure.any()
    predicted, true = sx.tl.confidence(resolved, scale_um=16, of="expression").X, truth(resolved, 2, "expected")
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, true.T, strict=True)])
    assert r[sure].min() > 0.5 > r[~sure].min()


def test_it_is_read_from_a_store(resolved: SpatialData, tmp_path: Path) -> None:
    resolved.write(tmp_path / "section.zarr")
    again = read_zarr(tmp_path / "section.zarr")
    found, expected = (sx.tl.confidence(x, again["superres"].var_names[0], scale_um=64) for x in (again, resolved))
    np.testing.assert_array_equal(found.layers["upper"], expected.layers["upper"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale_um": 20}, "scale_um=20 must be a multiple of 8"),
        ({"scale_um": 8000}, "wider than the tissue"),
        ({"level": 90}, "level=90 must lie between"),
        ({"fdr": 0}, "fdr=0 must lie between"),
        ({"of": "rates"}, "of='rates' must be"),
        ({"above": -1}, "above=-1 must be"),
        ({"key": "other"}, "key='other' is not in"),
        ({"genes": ["none"]}, "none"),
    ],
)
def test_bad_arguments_are_refused(resolved: SpatialData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((KeyError, ValueError), match=message):
        sx.tl.confidence(resolved, **arguments)


@pytest.fixture(scope="module")
def small() -> SpatialData:
    return sx.datasets.simulate(size_um=700, n_genes=6)


def test_without_enough_spots_there_are_no_intervals_and_it_says_why(small: SpatialData) -> None:
    sx.tl.super_resolve(small, encoder=colour, overwrite=True, **QUICK | {"epochs": 2})
    assert "trusted_scale_um" not in small.tables["superres"].var
    with pytest.raises(ValueError, match="[1-9][0-9]* spots were left out while fitting, and 50 are needed"):
        sx.tl.confidence(small)


def test_a_part_of_a_result_has_the_intervals_of_the_whole(resolved: SpatialData) -> None:
    table = resolved.tables["superres"]
    west = table[table.obs["array_col"] < table.obs["array_col"].median()]
    shuffled = west[np.random.default_rng(0).permutation(west.n_obs), 2:9].copy()
    part = sx.tl.confidence(holding(shuffled, "mine"), key="mine", scale_um=16, of="expression")
    whole = sx.tl.confidence(resolved, list(part.var_names), scale_um=16, of="expression")
    inner = part[part.obs["n_superpixels"] == 4]
    for name in ("lower", "upper", "probability"):
        np.testing.assert_allclose(inner.layers[name], whole[inner.obs_names].layers[name], rtol=1e-5)
    np.testing.assert_allclose(inner.obsm["spatial"], whole[inner.obs_names].obsm["spatial"])


def test_tissue_that_fills_no_square_is_refused(resolved: SpatialData) -> None:
    table = resolved.tables["superres"]
    line = table[table.obs["array_col"] == table.obs["array_col"].median()].copy()
    with pytest.raises(ValueError, match="scale_um=64: no square of that side lies on tissue by half"):
        sx.tl.confidence(holding(line), scale_um=64)


@pytest.mark.parametrize("empty", [sc.pp.filter_cells, sc.pp.filter_genes])
def test_an_empty_result_is_refused(resolved: SpatialData, empty: Callable[..., None]) -> None:
    part = holding(resolved.tables["superres"].copy())
    empty(part["superres"], min_counts=10**9)
    with pytest.raises(ValueError, match="key='superres' is empty"):
        sx.tl.confidence(part)


@pytest.mark.parametrize("target", [None, 1.0, 1e4])
def test_normalised_counts_are_refused(resolved: SpatialData, target: float | None) -> None:
    table = resolved.tables["superres"].copy()
    sc.pp.normalize_total(table, target_sum=target)
    with pytest.raises(ValueError, match="key='superres' holds values that look normalised.*hold the counts in X"):
        sx.tl.confidence(holding(table))


def test_scaled_counts_are_refused(resolved: SpatialData) -> None:
    table = resolved.tables["superres"].copy()
    table.X = table.X * 10
    with pytest.raises(ValueError, match="Means are .* times those of the counts"):
        sx.tl.confidence(holding(table))


def test_genes_are_trusted_alike_however_many_are_looked_at_at_once(
    resolved: SpatialData, model: sx.tl.SuperResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = resolved.tables["superres"]
    mask = np.zeros(table.obs[["array_row", "array_col"]].max() + 1, dtype=bool)
    mask[table.obs["array_row"], table.obs["array_col"]] = True
    learnt = replace(model, calibration=calibration_of(table, "superres"))
    monkeypatch.setattr(lattice, "_GENES_AT_ONCE", 7)
    again = gene_table(learnt, table.X, mask)
    np.testing.assert_array_equal(again["trusted_scale_um"], table.var["trusted_scale_um"])


def test_a_model_says_nothing_of_a_section_that_it_was_not_fitted_to(
    resolved: SpatialData, model: sx.tl.SuperResolver, tmp_path: Path
) -> None:
    model.save(tmp_path)
    loaded = sx.tl.SuperResolver.load(tmp_path)
    other = SpatialData.init_from_elements(
        {name: element for _, name, element in resolved.gen_elements() if not name.startswith("superres_l")}
    )
    other.attrs = copy.deepcopy(resolved.attrs)
    other.tables["counts"] = resolved.tables["counts"].copy()
    other.tables["counts"].X = resolved.tables["counts"].X[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sx.tl.predict(resolved, loaded, key_added="own", overwrite=True)
    with pytest.warns(UserWarning, match="fitted to another section, so that no gene can be judged and none is"):
        sx.tl.predict(other, loaded, key_added="new", drop_genes="chance")
    judged = {"verdict", "held_out_pearson", "mean_count", "trusted_scale_um"}
    assert judged <= set(resolved.tables["own"].var)
    assert not judged & set(other.tables["new"].var)
    for name, sdata in (("own", resolved), ("new", other)):
        np.testing.assert_array_equal(sdata.tables[name].var["image_share"], loaded.image_share)
    with pytest.raises(ValueError, match="no intervals: the model was fitted to another section"):
        sx.tl.confidence(other, key="new")


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"holdout": 0.0}, r"no spots were left out while fitting \(holdout=0\)"),
        ({"spots": "enhanced", "layers": 1}, "cannot be judged where they are enhanced"),
    ],
)
def test_why_there_are_no_intervals_is_said(parameters: dict[str, Any], why: str, small: SpatialData) -> None:
    quick = QUICK | {"epochs": 1, "n_models": 1} | parameters
    sx.tl.super_resolve(small, encoder=colour, overwrite=True, **quick)
    with pytest.raises(ValueError, match=f"has no intervals: .*{why}"):
        sx.tl.confidence(small)


def test_logarithms_are_refused(resolved: SpatialData) -> None:
    part = holding(resolved.tables["superres"].copy())
    sc.pp.log1p(part.tables["superres"])
    with pytest.raises(ValueError, match="logarithms"):
        sx.tl.confidence(part)


def test_genes_that_say_nothing_are_left_out_when_asked_for(resolved: SpatialData, model: sx.tl.SuperResolver) -> None:
    with pytest.warns(UserWarning) as said:
        sx.tl.predict(resolved, model, key_added="all")
        sx.tl.predict(resolved, model, key_added="kept", drop_genes="interpolation")
    verdict = resolved.tables["all"].var["verdict"]
    assert list(resolved.tables["kept"].var_names) == list(verdict.index[verdict == "better"])
    assert any("genes are predicted no better than by" in str(one.message) for one in said)
    with pytest.raises(ValueError, match="drop_genes='all' must be"):
        sx.tl.predict(resolved, model, key_added="other", drop_genes="all")  # type: ignore[arg-type]
