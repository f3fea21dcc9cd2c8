"""The result as SpatialData elements: a labels raster, and a table for scanpy, squidpy and spatialdata-plot."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata._core.validation import check_valid_name
from spatialdata.models import Labels2DModel, TableModel
from spatialdata.transformations import Scale, Sequence, Translation
from xarray import DataArray

from sphistex._section import Section
from sphistex._store import add_element, check_free, record
from sphistex._thumbnail import cheapest, shrink
from sphistex.nn import SuperResolver
from sphistex.tl._trust import gene_table, record_of

_THUMBNAIL_PX = 2000
_INSIDE = 0.5


def labels_name(key_added: str) -> str:
    """Name of the labels that the table ``key_added`` annotates: SpatialData allows a name only once."""
    return f"{key_added}_labels"


def check_result_free(sdata: SpatialData, section: Section, key_added: str, *, overwrite: bool) -> None:
    """Refuse a name under which no result can be added."""
    try:
        check_valid_name(key_added)
    except (TypeError, ValueError) as error:
        raise type(error)(f"key_added={key_added!r} cannot be the name of an element: {error}") from error
    if key_added == section.table_key:
        raise ValueError(f"key_added={key_added!r} is the table of the spots' counts; choose another one")
    check_free(sdata, "tables", key_added, overwrite=overwrite)
    check_free(sdata, "labels", labels_name(key_added), overwrite=overwrite or _interrupted(sdata, key_added))


def _interrupted(sdata: SpatialData, key_added: str) -> bool:
    """Whether an earlier run ended after it had added its labels, and before their table."""
    return key_added in sdata.attrs.get("sphistex", {}) and key_added not in sdata.tables


def add_result(
    sdata: SpatialData,
    section: Section,
    model: SuperResolver,
    counts: NDArray[np.float32],
    mask: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    *,
    features_key: str,
    tissue_key: str,
    conserve_counts: bool,
    key_added: str,
    overwrite: bool,
) -> None:
    """Add labels and table for the counts (n_superpixels, n_genes) of the tissue superpixels, in row-major order.

    Only the ``kept`` genes (n_genes,) are.
    """
    first, last = _bounding_box(mask)
    cropped = mask[first[0] : last[0], first[1] : last[1]]
    ids = np.zeros(cropped.shape, dtype=np.int32)
    ids[cropped] = np.arange(1, len(counts) + 1)
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
            "region": pd.Categorical([region] * len(counts)),
            "instance_id": np.arange(1, len(counts) + 1),
            "array_row": row,
            "array_col": column,
            "in_spot": covered >= _INSIDE,
        },
        index=[f"{key_added}_{i}" for i in range(1, len(counts) + 1)],
    )
    trust = gene_table(model, counts, mask)
    var = section.table.var.loc[model.genes].drop(columns=trust.columns, errors="ignore").join(trust)
    table = ad.AnnData(counts if kept.all() else counts[:, kept], obs=obs, var=var[kept])
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
    table = TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")
    overwrite = overwrite or _interrupted(sdata, key_added)
    made_from = {"table_key": section.table_key} if section.has_spots else {}
    record(sdata, key_added, {"labels_key": region} | made_from)
    add_element(sdata, "labels", region, labels, overwrite=overwrite)
    add_element(sdata, "tables", key_added, table, overwrite=overwrite)


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
    level = cheapest(levels, _THUMBNAIL_PX)
    factor = max(1, -(-max(level.sizes["y"], level.sizes["x"]) // _THUMBNAIL_PX))
    scale = level.sizes["x"] / section.image.sizes["x"] / factor
    return {
        "images": {"hires": shrink(level, factor)},
        "scalefactors": {"spot_diameter_fullres": float(section.grid.pitch_px), "tissue_hires_scalef": scale},
    }


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
        "mpp": section.mpp,
        "pitch_um": section.grid.pitch_um,
        "training": curves,
        **info,
    }
