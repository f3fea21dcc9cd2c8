"""Lazy results: the same numbers as dense ones, gene by gene, also after the store was closed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import spatialdata as sd
from scipy import sparse
from spatialdata import SpatialData, read_zarr

import sphistex as sx
from sphistex.nn.genes import GeneReader
from sphistex.nn.prediction import Mapper
from sphistex.tl import _result
from sphistex.tl._genes import choose_genes
from sphistex.tl.predict import held_lazily

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore")
# every spot is left out by one of the two models, so that there is a calibration
QUICK: dict[str, Any] = {"epochs": 2, "n_models": 2, "holdout": 0.5, "hidden": (16,), "d": 16, "embed": 16}


def colour(tiles: np.ndarray) -> np.ndarray:
    """Mean and spread of the colours of every patch."""
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // 16, 16, width // 16, 16, 3).astype(np.float32)
    return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], axis=-1)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpatialData]:
    """A section with its features."""
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    sdata = sx.datasets.simulate(size_um=850, n_genes=30)
    sx.tl.superpixel_features(sdata, encoder=colour)
    yield sdata
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def model(bare: SpatialData) -> sx.tl.SuperResolver:
    fitted = sx.tl.fit(bare, genes="all", **QUICK)
    fitted.image_share[:] = np.linspace(0, 1, len(fitted.genes))
    return fitted


@pytest.fixture(scope="module")
def sdata(bare: SpatialData, model: sx.tl.SuperResolver) -> SpatialData:
    """A lazy result and a dense one of the same model, which mixes networks and interpolation."""
    sx.tl.predict(bare, model, lazy=True)
    sx.tl.predict(bare, model, lazy=False, key_added="dense")
    return bare


@pytest.fixture(scope="module")
def written(sdata: SpatialData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The section on disk, not to be changed."""
    path = tmp_path_factory.mktemp("store") / "section.zarr"
    sdata.write(path, update_sdata_path=False)
    return path


@pytest.fixture
def stored(written: Path) -> SpatialData:
    """The section read again; its store is not to be changed."""
    return read_zarr(written)


@pytest.fixture
def own(written: Path, tmp_path: Path) -> SpatialData:
    """A copy of it."""
    shutil.copytree(written, tmp_path / "own.zarr")
    return read_zarr(tmp_path / "own.zarr")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ------------------------------------------------------------------------------------------------ what it holds


def test_lazy_counts_are_the_dense_ones(sdata: SpatialData) -> None:
    """But for the half precision of the latent map."""
    lazy, dense = sdata.tables["superres"], sdata.tables["dense"]
    assert lazy.shape == dense.shape
    assert list(lazy.var_names) == list(dense.var_names)
    found = lazy.X.compute()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, dense.X, rtol=5e-3, atol=1e-3 * dense.X.mean())
    assert (
        lazy.obs.drop(columns="region")
        .reset_index(drop=True)
        .equals(dense.obs.drop(columns="region").reset_index(drop=True))
    )


@pytest.mark.parametrize("genes", [[4], [7, 2, 29], [], list(range(29, -1, -1))])
def test_genes_in_any_order_are_those_of_the_whole(sdata: SpatialData, genes: list[int]) -> None:
    table = sdata.tables["superres"]
    found = table[:, table.var_names[genes]].X
    assert found.shape == (table.n_obs, len(genes))
    if genes:
        np.testing.assert_allclose(found.compute(), table.X.compute()[:, genes], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "index",
    [
        (slice(100, 5000, 7), slice(3, 9)),
        (np.array([5, 3, 900]), np.array([1, 20])),
        (slice(None), 3),
        (slice(None), [3, 1]),
        (17, slice(None)),
        (slice(None), np.arange(30) % 3 == 0),
        (slice(None), -1),
        slice(10, 20),
    ],
)
def test_it_is_cut_as_an_array_is(sdata: SpatialData, index) -> None:
    counts = sdata.tables["superres"].X
    whole = counts.compute()
    expected = whole[np.ix_(*index)] if isinstance(index, tuple) and isinstance(index[0], np.ndarray) else whole[index]
    if isinstance(index, tuple) and isinstance(index[0], np.ndarray):
        found = counts[:, index[1]][index[0]]
    else:
        found = counts[index]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.compute(), expected, rtol=1e-4, atol=1e-6)


def test_one_gene_is_computed_without_the_others(sdata: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    table, made = sdata.tables["superres"], []
    original = GeneReader.counts

    def counted(self: GeneReader, *args, **kwargs) -> np.ndarray:
        found = original(self, *args, **kwargs)
        made.append(found.shape[1])
        return found

    monkeypatch.setattr(GeneReader, "counts", counted)
    table[:, [table.var_names[5]]].X.compute()
    assert set(made) == {1}
    made.clear()
    some = RNG.random(table.n_obs) < 0.1
    for part in (table[:100, table.var_names[:2]], table[some, table.var_names[:2]], table[some].copy()[:, :2]):
        made.clear()
        part.to_memory()
        assert set(made) == {2}
    repr(table), table.copy(), table.X.copy()
    assert len(made) < 10, "and nothing else computes any"


def test_scanpy_takes_it(sdata: SpatialData) -> None:
    table, gene = sdata.tables["superres"], sdata.tables["superres"].var_names[3]
    column = sc.get.obs_df(table, [gene])[gene]
    np.testing.assert_allclose(column, np.asarray(table[:, gene].X).ravel(), rtol=1e-4, atol=1e-6)
    normalised = table.copy()
    sc.pp.normalize_total(normalised, target_sum=100)
    sc.pp.log1p(normalised)
    exact = table.to_memory()
    sc.pp.normalize_total(exact, target_sum=100)
    sc.pp.log1p(exact)
    np.testing.assert_allclose(normalised.X.compute(), exact.X, rtol=1e-4, atol=1e-6)


def test_a_part_of_the_section_keeps_its_counts(sdata: SpatialData, tmp_path: Path) -> None:
    part = sd.bounding_box_query(
        sdata, axes=("x", "y"), min_coordinate=[500, 500], max_coordinate=[900, 900], target_coordinate_system="global"
    )
    table, whole = part.tables["superres"], sdata.tables["superres"]
    assert 100 < table.n_obs < whole.n_obs
    inside = whole.obs_names.isin(table.obs_names)
    np.testing.assert_allclose(table.X.compute(), whole.X.compute()[inside], rtol=1e-5)
    part.write(tmp_path / "part.zarr")
    again = read_zarr(tmp_path / "part.zarr")
    np.testing.assert_allclose(again.tables["superres"].X, table.X.compute(), rtol=1e-5)
    with pytest.raises(ValueError, match="key='superres' is a part of a lazy result"):
        sx.tl.open_genes(again)


def test_confidence_pictures_and_metrics_take_it(sdata: SpatialData) -> None:
    lazy, dense = sdata.tables["superres"], sdata.tables["dense"]
    genes = list(lazy.var_names[:2])
    for key in ("superres", "dense"):
        figure = sx.pl.expression(sdata, genes, key=key, return_fig=True)
        assert figure is not None
    of_lazy, of_dense = (sx.metrics.from_tables(t[:, genes], sdata.tables["truth"])[0] for t in (lazy, dense))
    np.testing.assert_allclose(of_lazy, of_dense, rtol=5e-3, atol=1e-3)
    probability = [
        sx.tl.confidence(sdata, genes, key=key, scale_um=32).layers["probability"] for key in ("superres", "dense")
    ]
    np.testing.assert_allclose(np.asarray(probability[0]), np.asarray(probability[1]), atol=0.01)


def test_the_trusted_scale_is_that_of_the_dense_result(sdata: SpatialData) -> None:
    assert "trusted_scale_um" not in sdata.tables["superres"].var
    sx.tl.trusted_scale(sdata)
    found, expected = (sdata.tables[key].var["trusted_scale_um"] for key in ("superres", "dense"))
    assert (found.eq(expected) | found.isna() & expected.isna()).mean() > 0.9
    del sdata.tables["superres"].var["trusted_scale_um"]


# ------------------------------------------------------------------------------------------------ on disk


def test_a_store_holds_no_counts_and_opens_them_again(sdata: SpatialData, stored: SpatialData) -> None:
    lazy = sdata.tables["superres"].X.compute()
    assert stored.tables["superres"].X is None, "nothing that could be taken for a result"
    assert stored.path is not None
    assert size_of(stored.path / "tables" / "superres" / "X") < 10_000
    sx.tl.open_genes(stored)
    np.testing.assert_array_equal(stored.tables["superres"].X.compute(), lazy)  # type: ignore[attr-defined]


def test_what_needs_counts_says_how_to_get_them(stored: SpatialData) -> None:
    gene = stored.tables["superres"].var_names[0]
    for function in (
        lambda: sx.tl.confidence(stored, [gene]),
        lambda: sx.pl.expression(stored, [gene], return_fig=True),
        lambda: sx.metrics.from_tables(stored.tables["superres"], stored.tables["truth"]),
    ):
        with pytest.raises(ValueError, match="open_genes"):
            function()


def test_a_table_by_itself_is_written_with_its_counts(sdata: SpatialData, tmp_path: Path) -> None:
    table = sdata.tables["superres"]
    for name, write, read in (
        ("t.zarr", table.write_zarr, ad.read_zarr),
        ("t.h5ad", table.write_h5ad, ad.read_h5ad),
    ):
        write(tmp_path / name)
        np.testing.assert_allclose(read(tmp_path / name).X, table.X.compute(), rtol=1e-5)


def test_predicted_into_a_store(own: SpatialData, model: sx.tl.SuperResolver) -> None:
    sx.tl.predict(own, model, lazy=True, key_added="new")
    found = own.tables["new"].X.compute()
    again = read_zarr(own.path)
    sx.tl.open_genes(again, key="new")
    np.testing.assert_array_equal(again.tables["new"].X.compute(), found)
    sx.tl.predict(own, model, lazy=False, key_added="new", overwrite=True)
    assert not {"new_latent", "new_model"} & {*own.images, *own.tables}, "what only the lazy one needs is gone"
    again = read_zarr(own.path)
    assert not {"new_latent", "new_model"} & {*again.images, *again.tables}
    np.testing.assert_allclose(again.tables["new"].X, found, rtol=5e-3, atol=1e-3 * found.mean())


@pytest.mark.parametrize("step", ["latent", "labels"])
def test_an_interrupted_prediction_loses_nothing(
    own: SpatialData, model: sx.tl.SuperResolver, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It stops in the second block of the latent map, or before the labels of the new result are there."""
    n_done = 0

    def stops(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_done
        n_done += 1
        if step == "labels" or n_done == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    if step == "latent":
        monkeypatch.setattr(sx.settings, "memory_gb", 0.5)  # small blocks
    where, name = (Mapper, "latent") if step == "latent" else (_result, "_spatial")
    original = getattr(where, name)
    with monkeypatch.context() as patched:
        patched.setattr(where, name, stops)
        for key in ("superres", "new"):
            n_done = 0
            with pytest.raises(KeyboardInterrupt):
                sx.tl.predict(own, model, lazy=True, key_added=key, overwrite=key == "superres")
    monkeypatch.undo()
    again = read_zarr(own.path)
    assert "new" not in again.tables
    sx.tl.open_genes(again)  # by the same model, so that what is there still fits
    sx.tl.predict(again, model, lazy=True, key_added="new")
    np.testing.assert_array_equal(again.tables["new"].X[:, :2].compute(), again.tables["superres"].X[:, :2].compute())


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("sparse_below", [None, 0.05])
def test_written_out(sdata: SpatialData, own: SpatialData, on_disk: bool, sparse_below: float | None) -> None:
    section = own if on_disk else sdata
    whole = sdata.tables["superres"].X.compute()
    genes = list(sdata.tables["superres"].var_names[[6, 2]])
    sx.tl.materialise(section, genes=genes, sparse_below=sparse_below, key_added="some", overwrite=True)
    expected = whole[:, [6, 2]].copy()
    if sparse_below is not None:
        expected[expected < sparse_below] = 0
    tables = [section.tables["some"]] + ([read_zarr(own.path).tables["some"]] if on_disk else [])
    for table in tables:
        counts = table.X.compute() if hasattr(table.X, "compute") else table.X
        assert sparse.issparse(counts) == (sparse_below is not None)
        found = counts.toarray() if sparse.issparse(counts) else counts
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert list(table.var_names) == genes
        assert table.obs["region"].unique().tolist() == ["superres_labels"]
    sx.pl.expression(section, genes[0], key="some", return_fig=True)


# ------------------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_opened(stored: SpatialData) -> None:
    with pytest.raises(KeyError, match="'absent'"):
        sx.tl.open_genes(stored, key="absent")
    with pytest.raises(ValueError, match="'dense' is not lazy"):
        sx.tl.open_genes(stored, key="dense")
    for below in (-1, np.nan, np.inf, True, "few"):
        with pytest.raises(ValueError, match=f"sparse_below={below!r} must be a number"):
            sx.tl.materialise(stored, sparse_below=below)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key_added='a b' cannot be stored"):
        sx.tl.materialise(stored, key_added="a b")
    with pytest.raises(KeyError, match="'nonsense'"):
        sx.tl.materialise(stored, genes=["nonsense"])
    with pytest.raises(ValueError, match="key_added='superres'"):
        sx.tl.materialise(stored, key_added="superres")
    stored.tables["superres"] = stored.tables["superres"][:, :3].copy()
    with pytest.raises(ValueError, match="cut or reordered"):
        sx.tl.open_genes(stored)
    latent = stored.images.pop("superres_latent")
    with pytest.raises(KeyError, match="superres_latent"):
        sx.tl.open_genes(stored)
    stored.images["superres_latent"] = latent


@pytest.mark.parametrize("damage", ["missing", "garbled"])
def test_a_latent_map_that_was_damaged_is_not_read(own: SpatialData, model: sx.tl.SuperResolver, damage: str) -> None:
    sx.tl.predict(own, model, lazy=True, key_added="new")
    chunk = next(file for file in (Path(own.path) / "images" / "new_latent").rglob("c/*/*/*") if file.is_file())
    content = chunk.read_bytes()
    chunk.unlink() if damage == "missing" else chunk.write_bytes(content[:-9] + bytes(9))
    for use in (sx.tl.open_genes, sx.tl.materialise):
        with pytest.raises(OSError, match=f"new_latent.*1 files, such as .*{chunk.name}.*overwrite=True"):
            use(read_zarr(own.path), key="new")
    sx.tl.predict(own, model, lazy=True, key_added="new", overwrite=True)
    sx.tl.open_genes(own, key="new")
    assert chunk.read_bytes() == content


def test_a_latent_map_in_a_cache_that_was_emptied_is_not_read(
    sdata: SpatialData, model: sx.tl.SuperResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = SpatialData(**{kind: dict(getattr(sdata, kind)) for kind in ("images", "labels", "shapes", "tables")})
    section.attrs = sdata.attrs
    monkeypatch.setattr(sx.settings, "cache_dir", tmp_path / "cache")
    sx.tl.predict(section, model, lazy=True, key_added="new")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(OSError, match="new_latent.*overwrite=True"):
        sx.tl.open_genes(section, key="new")


def test_a_latent_map_of_another_model_is_not_read(stored: SpatialData) -> None:
    stored.attrs["sphistex"]["superres_latent"]["tag"] = "another"
    with pytest.raises(ValueError, match="make it again"):
        sx.tl.open_genes(stored)


def test_conserved_counts_are_not_lazy(sdata: SpatialData, model: sx.tl.SuperResolver) -> None:
    with pytest.raises(ValueError, match="conserve_counts=True.*lazy=True"):
        sx.tl.predict(sdata, model, key_added="kept", conserve_counts=True, lazy=True)
    with pytest.raises(ValueError, match="conserve_counts=True.*memory_gb"):
        held_lazily(np.ones((400, 400), dtype=bool), 5000, None, conserve_counts=True)
    with pytest.raises(TypeError, match="lazy='yes'"):
        sx.tl.predict(sdata, model, key_added="kept", lazy="yes")  # type: ignore[arg-type]
    assert "kept" not in sdata.tables


@pytest.mark.parametrize(("side", "n_genes", "lazy"), [(820, 1000, False), (1500, 1000, True), (400, 5000, True)])
def test_a_table_without_room_in_memory_is_lazy(side: int, n_genes: int, lazy: bool) -> None:
    """That of 1,000 genes of a whole Visium section (6.6 mm) has room, so that scanpy takes it as it is."""
    mask = np.ones((side, side), dtype=bool)
    assert held_lazily(mask, n_genes, None, conserve_counts=False) is lazy
    assert held_lazily(mask, n_genes, not lazy, conserve_counts=False) is not lazy


def test_all_genes_are_those_that_are_seen_in_enough_spots(caplog: pytest.LogCaptureFixture) -> None:
    table = sx.datasets.simulate(size_um=700, n_genes=20).tables["counts"].copy()
    counts = np.asarray(table.X.toarray() if sparse.issparse(table.X) else table.X)
    counts[1:, 4], counts[0, 4] = 0, 1
    table.X = counts
    seen = (counts > 0).sum(0) >= max(0.02 * table.n_obs, 1)
    with caplog.at_level("INFO", logger="sphistex"):
        assert choose_genes(table, "all") == list(table.var_names[seen])
    assert f"{seen.sum()} genes, and {(~seen).sum()} left out" in caplog.text
    with pytest.raises(TypeError, match="genes='some'"):
        choose_genes(table, "some")
