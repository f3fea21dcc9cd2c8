"""Expression of cells, nuclei and annotated regions: superpixels summed by the area that they share with each."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import TableModel
from tqdm.auto import tqdm

from sphistex._checks import check_genes, check_open
from sphistex._section import moved
from sphistex._store import add_element, check_free, record
from sphistex.settings import settings
from sphistex.tl._areas import Areas, areas_of
from sphistex.tl._expression import find_table
from sphistex.tl._gene_blocks import gene_blocks
from sphistex.tl._superpixels import Superpixels


def aggregate_by(
    sdata: SpatialData,
    element_key: str,
    *,
    table_key: str = "superres",
    genes: Sequence[str] | None = None,
    coordinate_system: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
) -> None:
    """Sum a result over cells, nuclei or regions: what is expected in each, by area.

    Each superpixel's counts are shared out by area: what lies to 30 % in a cell gives it 30 % of its counts. Shapes
    that tile the section therefore add up to the whole; shapes that overlap each get what they share, and what lies in
    none is counted nowhere. Overlaps with polygons are exact; circles are integrated in 64 slices per superpixel;
    labels are read at the same 8 × 8 to 32 × 32 points of every superpixel, as many as it has pixels of the labels.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`super_resolve` and the shapes or labels, in a common coordinate system.
    element_key
        Shapes (polygons, or circles with a radius) or labels (background 0, any other ids), such as the cells of
        Cellpose, StarDist, InstanSeg, Xenium or Space Ranger, or a pathologist's annotation. Labels may be multiscale
        and larger than memory.
    table_key
        Name of the result, lazy or not; or of a truth at 8 µm, to be compared with it.
    genes
        Which genes; by default all.
    coordinate_system
        Through which coordinate system both lie on each other; any one that both have, by default.
    key_added
        Name of the new table; by default ``<element_key>_<table_key>``.
    overwrite
        Replace a table of that name.

    Returns
    -------
    Adds ``sdata.tables[key_added]``, which annotates the element, one row for each of its instances:

    - ``X``: expected counts in the instance, float32; sparse where the result's counts are;
    - ``obs``: ``region`` and ``instance_id``, the index of the shapes or the id of the label; ``area_um2``, its whole
      area; ``covered_um2``, the part of it on superpixels of the result; ``n_superpixels`` that it touches;
      ``on_superpixels``, False where it touches none and its counts are 0 for that reason;
    - ``obsm["spatial"]``: centroids in pixels of the full-resolution image, and ``uns["spatial"]`` as in the result.

    Raises
    ------
    KeyError
        If there is no such table, element or gene.
    ValueError
        If elements do not fit each other, none lies on the result, shapes have no area, ``X`` holds logarithms, the new
        table would take more than ``settings.memory_gb``, or ``key_added`` exists; before any sums.

    Warns
    -----
    UserWarning
        If polygons are invalid (they are repaired), or instances lie outside of the superpixels.

    Notes
    -----
    Expected counts of 8 µm squares do not tell cells apart that share one: neighbouring cells get similar counts. For
    counts per area divide by ``obs["covered_um2"]``.

    Examples
    --------
    >>> import numpy as np
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1, conserve_counts=True)
    >>> sx.tl.aggregate_by(sdata, "spots")  # what they measured, since counts are conserved
    >>> again, measured = sdata.tables["spots_superres"], sdata.tables["counts"][:, model.genes]
    >>> bool(np.allclose(again.X, measured.X.toarray()))
    True
    """
    table = find_table(sdata, table_key)
    check_open(table, table_key)
    if "log1p" in table.uns:
        raise ValueError(f"table_key={table_key!r} holds logarithms, and sums are of counts: keep the counts in X")
    chosen = list(table.var_names) if genes is None else check_genes(table, genes, table_key)
    name = _checked_name(sdata, element_key, table_key, key_added, overwrite=overwrite)
    superpixels = Superpixels.of(sdata, table, table_key)
    areas = areas_of(sdata, "element_key", element_key, superpixels, coordinate_system)
    if not sparse.issparse(table.X):
        _check_memory(len(areas.ids), len(chosen))

    new = AnnData(
        _sums(areas.weights, table.X, table.var_names.get_indexer(chosen), table_key),
        obs=_obs(areas, element_key, superpixels.pitch_um),
        var=table.var.loc[chosen].copy(),
        obsm={"spatial": moved(areas.centres, superpixels.to_px)},
    )
    diameter_px = 2 * np.sqrt(float(np.median(areas.area)) / np.pi) * superpixels.to_px[0, 0]
    new.uns = _uns(table, table_key, element_key, name, diameter_px, superpixels.mpp)
    new = TableModel.parse(new, region=element_key, region_key="region", instance_key="instance_id")
    record(sdata, name, {"table_key": table_key, "element_key": element_key})
    add_element(sdata, "tables", name, new, overwrite=overwrite)


def _checked_name(
    sdata: SpatialData, element_key: str, table_key: str, key_added: str | None, *, overwrite: bool
) -> str:
    name = f"{element_key}_{table_key}" if key_added is None else key_added
    if name == table_key:
        raise ValueError(f"key_added={name!r} is the table that is summed: choose another name")
    check_free(sdata, "tables", name, overwrite=overwrite)
    return name


def _check_memory(n: int, n_genes: int) -> None:
    gigabytes = n * n_genes * 4 / 1e9
    if gigabytes > settings.memory_gb:
        raise ValueError(
            f"{n:,} instances of {n_genes:,} genes take {gigabytes:.1f} GB, more than settings.memory_gb="
            f"{settings.memory_gb:g}: name some with genes=, or raise the setting"
        )


def _sums(
    weights: sparse.csr_matrix, counts: Any, columns: NDArray[np.intp], table_key: str
) -> NDArray[np.float32] | sparse.csr_matrix:
    """Counts (n, n_genes) by area, a few genes at a time; summed in double precision, since regions may be large."""
    if sparse.issparse(counts):
        chosen = counts[:, columns]
        _check_finite(chosen.data, table_key)
        return sparse.csr_matrix(weights @ chosen, dtype=np.float32)
    out = np.empty((weights.shape[0], len(columns)), dtype=np.float32)
    with tqdm(total=len(columns), desc="summing", unit="gene", disable=not settings.progress) as bar:
        for part, values in gene_blocks(counts, columns):
            _check_finite(values, table_key)
            out[:, part] = weights @ values
            bar.update(values.shape[1])
    return out


def _check_finite(values: NDArray[Any], table_key: str) -> None:
    if lost := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(
            f"table {table_key!r} has {lost} counts that are NaN or infinite, which would spread to whole instances: "
            "leave those superpixels or genes out, or make the result again"
        )


def _obs(areas: Areas, element_key: str, pitch_um: float) -> pd.DataFrame:
    n_superpixels = np.diff(areas.weights.indptr)
    return pd.DataFrame(
        {
            "region": pd.Categorical([element_key] * len(areas.ids)),
            "instance_id": areas.ids.to_numpy(),
            "area_um2": areas.area * pitch_um**2,
            "covered_um2": np.asarray(areas.weights.sum(1)).ravel() * pitch_um**2,
            "n_superpixels": n_superpixels,
            "on_superpixels": n_superpixels > 0,
        },
        index=areas.ids.astype(str),
    )


def _uns(table: AnnData, table_key: str, element_key: str, name: str, diameter_px: float, mpp: float) -> dict[str, Any]:
    """How the table was made and, where the result has one, its thumbnail with the instances' size."""
    uns: dict[str, Any] = {
        name: {"made_by": "aggregate_by", "table_key": table_key, "element_key": element_key, "mpp": mpp}
    }
    for shown in list(table.uns.get("spatial", {}).values())[:1]:
        shown = deepcopy(shown)
        shown["scalefactors"]["spot_diameter_fullres"] = diameter_px
        uns["spatial"] = {name: shown}
    return uns
