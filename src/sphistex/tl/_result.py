"""The result as SpatialData elements: a labels raster, and a table for scanpy, squidpy and spatialdata-plot."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.models import Labels2DModel, TableModel
from spatialdata.transformations import Scale, Sequence, Translation
from xarray import DataArray

from sphistex._section import Section
from sphistex._store import add_element, check_free, record, remove_element
from sphistex._thumbnail import thumbnail
from sphistex.nn import SuperResolver
from sphistex.tl._lazy import LazyCounts
from sphistex.tl._trust import record_of

_INSIDE = 0.5
# In the record of a result: that the run which made it, with those of other sections, has not come to its end.
_UNFINISHED = "unfinished"


def labels_name(key_added: str) -> str:
    """Name of the labels that the table ``key_added`` annotates: SpatialData allows a name only once."""
    return f"{key_added}_labels"


def latent_name(key_added: str) -> str:
    """Name of the latent map that a lazy table ``key_added`` is read from."""
    return f"{key_added}_latent"


def model_name(key_added: str) -> str:
    """Name of the table that holds how a lazy table ``key_added`` is read."""
    return f"{key_added}_model"


def check_result_free(sdata: SpatialData, section: Section, key_added: str, *, overwrite: bool) -> None:
    """Refuse a name under which no result can be added."""
    if key_added == section.table_key:
        raise ValueError(f"key_added={key_added!r} is the table of the spots' counts; choose another one")
    again = overwrite or _interrupted(sdata, key_added)
    check_free(sdata, "tables", key_added, overwrite=overwrite or (again and key_added in sdata.tables))
    check_free(sdata, "labels", labels_name(key_added), overwrite=again)
    check_free(sdata, "images", latent_name(key_added), overwrite=again)
    check_free(sdata, "tables", model_name(key_added), overwrite=again)


def _interrupted(sdata: SpatialData, key_added: str) -> bool:
    """Whether an earlier run ended after it had added its labels or latent map, and before it was done."""
    records = sdata.attrs.get("sphistex", {})
    if key_added in sdata.tables:
        return bool(records.get(key_added, {}).get(_UNFINISHED))
    return bool({key_added, latent_name(key_added)} & set(records))


def finish_result(sdata: SpatialData, key_added: str) -> None:
    """Note that the run is done which added a result with others."""
    made = sdata.attrs["sphistex"][key_added]
    record(sdata, key_added, {name: value for name, value in made.items() if name != _UNFINISHED})


def add_result(
    sdata: SpatialData,
    section: Section,
    model: SuperResolver,
    counts: NDArray[np.float32] | LazyCounts,
    mask: NDArray[np.bool_],
    trust: pd.DataFrame,
    *,
    features_key: str,
    tissue_key: str,
    conserve_counts: bool,
    key_added: str,
    overwrite: bool,
    unfinished: bool,
) -> None:
    """Add labels and table for the counts of the tissue superpixels, in row-major order.

    The genes are those that ``trust`` speaks of: of lazy counts all, of others those among the model's. An
    ``unfinished`` result is one of several, and is made again if the run ends before :func:`finish_result`.
    """
    first, last = _bounding_box(mask)
    cropped = mask[first[0] : last[0], first[1] : last[1]]
    ids = np.zeros(cropped.shape, dtype=np.int32)
    n_superpixels = int(cropped.sum())
    ids[cropped] = np.arange(1, n_superpixels + 1)
    pitch_px = section.grid.pitch_px
    placed = [Scale([pitch_px] * 2, axes=("x", "y")), Translation([c * pitch_px for c in first[::-1]], axes=("x", "y"))]
    labels = Labels2DModel.parse(
        DataArray(ids, dims=("y", "x")),
        transformations={name: Sequence([*placed, to]) for name, to in section.image_transforms.items()},
    )

    row, column = np.nonzero(cropped)
    covered = _covered(section.bags.weights, mask)
    region = labels_name(key_added)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([region] * n_superpixels),
            "instance_id": np.arange(1, n_superpixels + 1),
            "array_row": row,
            "array_col": column,
            "in_spot": covered >= _INSIDE,
        },
        index=[f"{key_added}_{i}" for i in range(1, n_superpixels + 1)],
    )
    var = section.table.var.loc[trust.index].drop(columns=trust.columns, errors="ignore").join(trust)
    table = ad.AnnData(counts, obs=obs, var=var)
    table.obsm["spatial"] = section.grid.centres_px(row + first[0], column + first[1])
    table.uns["spatial"] = {key_added: _spatial(section, sdata.images[section.image_key])}
    table.uns[key_added] = _made_how(section, model) | {
        "features_key": features_key,
        "tissue_key": tissue_key,
        "labels_key": region,
        "conserve_counts": conserve_counts,
        "crop": [int(c) for c in first],
        "calibration": record_of(model),
    }
    if isinstance(counts, LazyCounts):
        table.uns[key_added] |= {"latent_key": latent_name(key_added), "model_key": model_name(key_added)}
    table = TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")
    overwrite = overwrite or _interrupted(sdata, key_added)
    made_from = {"table_key": section.table_key} if section.has_spots else {}
    state = {_UNFINISHED: True} if unfinished else {}
    record(sdata, key_added, {"labels_key": region} | made_from | state)
    add_element(sdata, "labels", region, labels, overwrite=overwrite)
    if isinstance(counts, LazyCounts):
        record(sdata, model_name(key_added), {"tag": counts.counts.tag})
        tissue = np.asarray(sdata.labels[tissue_key])
        how = _model_table(counts, var, tissue_key, tissue)
        add_element(sdata, "tables", model_name(key_added), how, overwrite=overwrite)
    add_element(sdata, "tables", key_added, table, overwrite=overwrite)
    if not isinstance(counts, LazyCounts):  # what an earlier lazy result of this name was read from
        remove_element(sdata, "images", latent_name(key_added))
        remove_element(sdata, "tables", model_name(key_added))


def _model_table(counts: LazyCounts, var: pd.DataFrame, tissue_key: str, tissue: NDArray) -> ad.AnnData:
    """How lazy counts are read from their latent map, as a table that SpatialData keeps.

    Its one row stands for the tissue: SpatialData fails on tables that annotate nothing, and where it cuts a section
    also on those of which nothing is left.
    """
    obs = pd.DataFrame({"region": pd.Categorical([tissue_key]), "instance_id": [int(tissue.max())]}, index=["model"])
    lazy = counts.counts
    uns = {"reader": lazy.reader.to_arrays(), "tag": lazy.tag, "grid": list(lazy.latent.mask.shape)}
    table = ad.AnnData(obs=obs, var=var[[]].copy(), uns=uns)
    return TableModel.parse(table, region=tissue_key, region_key="region", instance_key="instance_id")


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """First row and column with tissue, and one past the last."""
    spans = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    return (int(spans[0][0]), int(spans[1][0])), (int(spans[0][-1]) + 1, int(spans[1][-1]) + 1)


def _covered(weights: sparse.csr_matrix, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of each tissue superpixel that lies in spots, without an array of the size of the grid."""
    tissue = np.flatnonzero(mask)
    on_tissue = mask.ravel()[weights.indices]
    place = np.searchsorted(tissue, weights.indices[on_tissue])
    return np.bincount(place, weights.data[on_tissue], len(tissue)).astype(np.float64)


def _spatial(section: Section, element: Any) -> dict[str, Any]:
    """Thumbnail and scale factors, as squidpy and scanpy expect them of Visium."""
    levels = [section.image] if isinstance(element, DataArray) else list(get_pyramid_levels(element))
    return thumbnail(levels, section.grid.pitch_px)


def _made_how(section: Section, model: SuperResolver) -> dict[str, Any]:
    """All that is needed to make the result again; only what can be written to disk."""
    elements: dict[str, Any] = {"image_key": section.image_key}
    if section.has_spots:
        elements |= {
            "shapes_key": section.shapes_key,
            "table_key": section.table_key,
            "coordinate_system": section.coordinate_system,
            "spot_pitch_um": section.pitch_um,
        }
    info = dict(model.info)
    curves = {name: np.asarray(info.pop(name)) for name in ("train_loss", "validation_loss", "best_epoch")}
    return {
        # None cannot be written
        "params": {name: value for name, value in model.parameters.to_json().items() if value is not None},
        "encoder": model.encoder,
        "section": elements,
        "spots": section.has_spots,
        "predicted_spots": section.is_predicted,
        "mpp": section.mpp,
        "pitch_um": section.grid.pitch_um,
        "training": curves,
        **info,
    }
