"""How far each superpixel lies from a region's border."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from spatialdata import SpatialData

from sphistex.tl._annotate import annotate, check_own
from sphistex.tl._areas import areas_of
from sphistex.tl._expression import find_table
from sphistex.tl._spots import Choice, as_list, chosen_spots
from sphistex.tl._superpixels import Superpixels


def interface(
    sdata: SpatialData,
    region: Choice | None = None,
    *,
    element_key: str | None = None,
    table_key: str = "superres",
    coordinate_system: str | None = None,
    key_added: str = "distance_um",
) -> None:
    """Measure how far each superpixel lies from a region's border: below 0 inside, above 0 outside.

    The border runs between superpixels inside and outside. Distances are those of superpixels' centres along straight
    lines, also across bare glass, less half a superpixel: on both sides of the border the first superpixel lies 4 µm
    from it. Where a region ends with the tissue there is no border.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`super_resolve`.
    region
        The region: a boolean column of the table's ``obs``, or a column and one or several of its values, such as
        ``("annotation", "tumour")``. Superpixels without a value lie outside.
    element_key
        Shapes or labels that are the region instead, all of them together: superpixels lie inside if they do by more
        than half.
    table_key
        Name of the result.
    coordinate_system
        As in :func:`aggregate_by`, of ``element_key``.
    key_added
        Column of ``obs`` to add. What an earlier call added is replaced.

    Returns
    -------
    Nothing. Adds ``obs[key_added]``, float32 in µm, and ``uns[key_added]``, how it was made.

    Raises
    ------
    KeyError
        If there is no such table, column or element.
    ValueError
        If it is not said what the region is, or it holds none or all of the superpixels, so that there is no border.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> sx.tl.interface(sdata, ("compartment", "tumour"), table_key="truth")
    >>> truth = sdata.tables["truth"].obs
    >>> bool((truth["distance_um"] < 0).eq(truth["compartment"] == "tumour").all())
    True
    """
    table = find_table(sdata, table_key)
    check_own(table, table_key, key_added, "interface", there=key_added in table.obs)
    superpixels = Superpixels.of(sdata, table, table_key)
    if (region is None) == (element_key is None):
        raise ValueError(
            f"region={region!r}, element_key={element_key!r}: name one of them, a column of obs such as "
            "region=('annotation', 'tumour'), or shapes or labels"
        )
    made: dict[str, Any] = {"made_by": "interface", "table_key": table_key}
    if element_key is None:
        assert region is not None
        if isinstance(region, str) and (region in sdata.shapes or region in sdata.labels):
            raise ValueError(f"region={region!r} is an element, and no column of obs: pass element_key={region!r}")
        inside = chosen_spots(table, table_key, "region", region)
        what, made["region"] = f"region={region!r}", as_list(region)
    else:
        areas = areas_of(sdata, "element_key", element_key, superpixels, coordinate_system)
        inside = np.asarray(areas.weights.sum(0)).ravel() > 0.5
        what, made["element_key"] = f"element_key={element_key!r}", element_key
    if inside.all() or not inside.any():
        raise ValueError(
            f"{what} holds {'all' if inside.all() else 'none'} of the {len(inside)} superpixels of {table_key!r}: "
            "there is no border"
        )
    distance = _signed_distance(superpixels, inside)
    annotate(sdata, table_key, partial(_add, distance=distance, made=made, key_added=key_added))


def _signed_distance(superpixels: Superpixels, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance (n_obs,) in µm of superpixels to the border between two kinds of them."""
    raster = superpixels.raster(inside.astype(np.int8), fill=-1)
    to_inside, to_outside = (distance_transform_edt(raster != kind).ravel()[superpixels.place] for kind in (1, 0))
    return (np.where(inside, 0.5 - to_outside, to_inside - 0.5) * superpixels.pitch_um).astype(np.float32)


def _add(table: AnnData, *, distance: NDArray[np.float32], made: dict[str, Any], key_added: str) -> None:
    table.obs[key_added] = distance
    table.uns[key_added] = made
