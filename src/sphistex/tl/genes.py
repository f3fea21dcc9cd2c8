"""Lazy results: opened again, written out, and judged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import zarr
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex._checks import check_genes
from sphistex._store import add_element, attach, check_free, move_into_store, record, staging_path, write_store
from sphistex.nn import FeatureMap
from sphistex.nn.genes import GeneReader
from sphistex.settings import settings
from sphistex.tl._chunks import damaged
from sphistex.tl._lazy import Counts, LazyCounts
from sphistex.tl._trust import calibration_of, made_how, trusted_scales

# Superpixels in a chunk of counts on disk.
_ROWS = 1024


def open_genes(sdata: SpatialData, *, key: str = "superres") -> None:
    """Give a lazy result that was read from disk its counts back.

    A SpatialData store keeps of a lazy result the latent map and how genes are read from it, and no counts: ``X`` of
    its table is None until this is called. Nothing is computed.

    Parameters
    ----------
    sdata
        SpatialData with a lazy result of :func:`super_resolve` or :func:`predict`.
    key
        Name of the result.

    Returns
    -------
    Sets ``sdata.tables[key].X`` to a dask array (n_superpixels, n_genes). ``sdata.tables[key][:, genes].X.compute()``
    computes these genes and no others.

    Raises
    ------
    KeyError, ValueError
        If there is no such result, it is not lazy, or what it was read from is gone, changed or incomplete.
    OSError
        If the latent map has lost chunks on disk, or they were damaged.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1, lazy=True)
    >>> sdata.tables["superres"].X = None  # as when it was read from disk
    >>> sx.tl.open_genes(sdata)
    >>> sdata.tables["superres"][:, model.genes[:1]].X.compute().shape == (sdata.tables["superres"].n_obs, 1)
    True
    """
    table, counts = _lazy_result(sdata, key)
    table.X = LazyCounts.of(counts)


def materialise(
    sdata: SpatialData,
    *,
    key: str = "superres",
    genes: Sequence[str] | None = None,
    sparse_below: float | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
) -> None:
    """Compute the counts of a lazy result and keep them in a table, block by block.

    Where ``sdata`` lies on disk, counts are written there as they are computed, in little memory; otherwise the table
    is in memory and takes what it takes. Mind that SpatialData reads whole tables into memory when it opens a store.

    Parameters
    ----------
    sdata
        SpatialData with a lazy result.
    key
        Name of the result.
    genes
        Which genes; by default all.
    sparse_below
        Store a sparse matrix in which counts per superpixel below this number are 0. By default all are kept.
    key_added
        Name of the new table, which annotates the same labels; by default ``<key>_counts``.
    overwrite
        Replace a table of that name.

    Returns
    -------
    Adds ``sdata.tables[key_added]``, the same as the lazy table but for ``X``: an array or a sparse matrix; of an
    ``sdata`` on disk a dask array of what was written.

    Raises
    ------
    KeyError, TypeError, ValueError
        If there is no such lazy result or gene, or an argument makes no sense.
    OSError
        If the latent map is damaged on disk, or the table cannot be written.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1, lazy=True)
    >>> sx.tl.materialise(sdata, genes=model.genes[:5], sparse_below=0.01)
    >>> sdata.tables["superres_counts"].X.shape[1]
    5
    """
    table, counts = _lazy_result(sdata, key)
    name = f"{key}_counts" if key_added is None else key_added
    if name == key:
        raise ValueError(f"key_added={name!r} is the lazy result itself: choose another name")
    check_free(sdata, "tables", name, overwrite=overwrite)
    if sparse_below is not None and (
        isinstance(sparse_below, bool)
        or not isinstance(sparse_below, int | float | np.number)
        or not 0 < sparse_below < np.inf
    ):
        raise ValueError(f"sparse_below={sparse_below!r} must be a number of counts per superpixel above 0, or None")
    chosen = list(table.var_names) if genes is None else check_genes(table, genes, key)
    counts = counts.take(table.var_names.get_indexer(chosen))
    new = _without_counts(table, key, name, chosen)
    record(sdata, name, {"table_key": key})
    with tqdm(total=table.n_obs, desc="computing genes", unit="superpixel", disable=not settings.progress) as bar:
        if sdata.is_backed():
            _write(sdata, name, new, counts, sparse_below, bar)
            return
        if sparse_below is None:
            new.X = np.empty(new.shape, dtype=np.float32)
            _fill(new.X, counts, bar)
        else:
            new.X = sparse.vstack(list(_sparse_strips(counts, sparse_below, bar)), format="csr")
    add_element(sdata, "tables", name, new, overwrite=overwrite)


def trusted_scale(sdata: SpatialData, *, key: str = "superres") -> None:
    """Find from which scale on each gene of a lazy result can be trusted.

    Dense results say so in ``var["trusted_scale_um"]``. It takes the counts of all superpixels, and therefore is left
    out of a lazy result until it is asked for: all genes are computed once, a few at a time.

    Parameters
    ----------
    sdata
        SpatialData with a lazy result.
    key
        Name of the result.

    Returns
    -------
    Adds ``sdata.tables[key].var["trusted_scale_um"]``: the finest scale from which on more than half of what varies is
    signal; NaN where there is none.

    Raises
    ------
    KeyError, ValueError
        If there is no such lazy result, or it has no calibration.
    OSError
        If the latent map is damaged on disk.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=1200, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=3, lazy=True)
    >>> sx.tl.trusted_scale(sdata)
    >>> "trusted_scale_um" in sdata.tables["superres"].var
    True
    """
    table, counts = _lazy_result(sdata, key)
    calibration = calibration_of(table, key)
    table.var["trusted_scale_um"] = trusted_scales(calibration, LazyCounts.of(counts), counts.latent.mask)
    if sdata.is_backed():
        add_element(sdata, "tables", key, table, overwrite=True)


def _lazy_result(sdata: SpatialData, key: str) -> tuple[AnnData, Counts]:
    """Table of a lazy result, and what its counts are read from."""
    if key not in sdata.tables:
        raise KeyError(f"key={key!r} is not in sdata.tables ({sorted(sdata.tables)}): run sphistex.tl.super_resolve")
    table = sdata.tables[key]
    made = made_how(table, key)
    if "latent_key" not in made:
        raise ValueError(f"key={key!r} is not lazy: its counts are in X")
    latent_key, model_key, labels_key = (str(made[name]) for name in ("latent_key", "model_key", "labels_key"))
    parts = (("images", latent_key), ("tables", model_key), ("labels", labels_key))
    if missing := [f"sdata.{kind}[{name!r}]" for kind, name in parts if name not in getattr(sdata, kind)]:
        raise KeyError(f"key={key!r} is read from {', '.join(missing)}, which is gone: make the result again")
    model, latent = sdata.tables[model_key], sdata.images[latent_key].data
    tag = str(model.uns["tag"])
    if sdata.attrs.get("sphistex", {}).get(latent_key, {}).get("tag") != tag:
        raise ValueError(
            f"key={key!r} was not made to its end when it was made last: make it again, with overwrite=True"
        )
    if lost := damaged(sdata.images[latent_key]):
        raise OSError(
            f"key={key!r} is read from sdata.images[{latent_key!r}], which is lost or damaged on disk ({len(lost)} "
            f"files, such as {lost[0]}): make the result again, with overwrite=True"
        )
    if list(latent.shape[1:]) != list(model.uns["grid"]):
        raise ValueError(
            f"key={key!r} is a part of a lazy result: open the whole one, and cut it then. The counts of a part are in "
            "its X, also on disk"
        )
    mask = np.zeros(latent.shape[1:], dtype=bool)
    ids = np.asarray(sdata.labels[labels_key])
    row, column = np.asarray(made["crop"])
    mask[row : row + ids.shape[0], column : column + ids.shape[1]] = ids > 0
    if table.n_obs != mask.sum() or not table.var_names.equals(model.var_names):
        raise ValueError(
            f"key={key!r} has been cut or reordered: only a whole lazy result can be opened, and then be cut"
        )
    return table, Counts(FeatureMap(latent, mask), GeneReader.from_arrays(model.uns["reader"]), tag)


def _without_counts(table: AnnData, key: str, name: str, genes: list[str]) -> AnnData:
    """A table of some genes, without ``X``, that says it was made as the lazy one."""
    made = made_how(table, key)
    uns = {other: value for other, value in table.uns.items() if value is not made}
    uns[name] = {entry: value for entry, value in made.items() if entry not in ("latent_key", "model_key")}
    obsm = {other: np.array(value) for other, value in table.obsm.items()}
    return ad.AnnData(obs=table.obs.copy(), var=table.var.loc[genes].copy(), uns=uns, obsm=obsm)


def _write(
    sdata: SpatialData, name: str, table: AnnData, counts: Counts, sparse_below: float | None, bar: tqdm
) -> None:
    """Write a table into the store, its counts as they are computed."""
    staged = staging_path(sdata.path, f"tables-{name}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        write_store(staged, "tables", name, table, beside=sdata.path)
        group = zarr.open_group(staged / "tables" / name, mode="r+", use_consolidated=False)
        if sparse_below is None:
            del group["X"]
            chunks = min(_ROWS, table.n_obs), counts.genes_at_once
            array = group.create_array("X", shape=table.shape, chunks=chunks, dtype=np.float32)
            array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            _fill(array, counts, bar)
        else:
            strips = _sparse_strips(counts, sparse_below, bar)
            ad.io.write_elem(group, "X", next(strips))
            for strip in strips:
                ad.io.sparse_dataset(group["X"]).append(strip)
        move_into_store(staged, sdata.path, "tables", name)
    except OSError as error:
        message = f"tables[{name!r}] could not be written to {sdata.path}, which is unchanged: {error.strerror}"
        raise OSError(error.errno, message) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    written = zarr.open_group(Path(sdata.path) / "tables" / name, mode="r")["X"]
    table.X = ad.experimental.read_elem_lazy(written)
    attach(sdata, "tables", name, table)


def _fill(out: Any, counts: Counts, bar: tqdm) -> None:
    """Compute all counts into an array in memory or on disk (n_superpixels, n_genes)."""
    first = 0
    for strip, size in enumerate(counts.sizes):
        for genes in counts.parts:
            out[first : first + size, genes] = counts.of(strip, genes)
        first += size
        bar.update(size)


def _sparse_strips(counts: Counts, below: float, bar: tqdm) -> Iterator[sparse.csr_matrix]:
    """All counts, strip by strip, without those below a number."""
    for strip, size in enumerate(counts.sizes):
        parts = []
        for genes in counts.parts:
            values = counts.of(strip, genes)
            values[values < below] = 0
            parts.append(sparse.csr_matrix(values))
        yield sparse.hstack(parts, format="csr")
        bar.update(size)
