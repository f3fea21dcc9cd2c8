"""Linearly enhanced spots: new spots at the midpoints of lattice neighbours (HISTEX, eq. 1–3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from spatialdata.models import ShapesModel, TableModel

from sphistex._section import resolve_section
from sphistex._store import add_element, check_free, record
from sphistex.lattice import enhancement_matrix
from sphistex.pp.tissue import on_tissue

if TYPE_CHECKING:
    from spatialdata import SpatialData


def enhance_spots(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    labels_key: str = "tissue",
    mpp: float | None = None,
    key_added: str = "enhanced_spots",
    overwrite: bool = False,
) -> None:
    """Add spots at the midpoints of lattice neighbours, about four times as many as were measured (eq. 1–3).

    Positions outside the tissue mask are left out (eq. 3); measured spots are always kept.

    Parameters
    ----------
    sdata
        Object with an image, spot shapes and their count table.
    image_key, shapes_key, table_key, coordinate_system
        Which elements to use; needed only where there is more than one candidate.
    labels_key
        Tissue mask made by :func:`tissue_mask`; without it every position is kept.
    mpp
        Microns per image pixel; derived from the spot pitch by default.
    key_added
        Name of the new table, which annotates the new shapes ``<key_added>_shapes``. Enhanced counts are means and so
        not integers; ``obs["measured"]`` marks the measured spots.
    overwrite
        Replace existing elements of that name.

    Raises
    ------
    KeyError, ValueError
        If the elements cannot be resolved, or ``key_added`` exists and ``overwrite`` is not set.

    References
    ----------
    HISTEX (MICCAI 2025), section 2.1, eq. 1–3.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> sx.pp.enhance_spots(sdata)
    >>> sdata["enhanced_spots"].n_obs > 3 * sdata["counts"].n_obs
    True
    """
    shapes_name = f"{key_added}_shapes"
    check_free(sdata, "shapes", shapes_name, overwrite=overwrite)
    check_free(sdata, "tables", key_added, overwrite=overwrite)
    section = resolve_section(
        sdata,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        mpp=mpp,
    )
    matrix = enhancement_matrix(section.xy_px, section.pitch_um / section.mpp)
    xy_px = matrix @ section.xy_px
    measured = np.arange(len(xy_px)) < len(section.xy_px)
    if labels_key in sdata.labels:
        inside = measured | on_tissue(np.asarray(sdata.labels[labels_key]), section.grid, xy_px)
        matrix, xy_px, measured = (x[inside] for x in (matrix, xy_px, measured))

    index = np.arange(1, len(xy_px) + 1)
    shapes = ShapesModel.parse(
        xy_px,
        geometry=0,
        radius=float(np.median(section.radius_px)),
        index=index,
        transformations=section.image_transforms,
    )
    obs = pd.DataFrame(
        {"region": pd.Categorical([shapes_name] * len(index)), "instance_id": index, "measured": measured},
        index=[f"{key_added}_{i}" for i in index],
    )
    counts = sparse.csr_matrix(matrix @ sparse.csr_matrix(section.table.X), dtype=np.float32)
    table = ad.AnnData(counts, obs=obs, var=section.table.var.copy(), obsm={"spatial": xy_px})
    table = TableModel.parse(table, region=shapes_name, region_key="region", instance_key="instance_id")
    made_from = {"shapes_key": section.shapes_key, "table_key": section.table_key}
    record(sdata, shapes_name, made_from)
    record(sdata, key_added, made_from)
    add_element(sdata, "shapes", shapes_name, shapes, overwrite=overwrite)
    add_element(sdata, "tables", key_added, table, overwrite=overwrite)
