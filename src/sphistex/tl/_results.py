"""A result by name, and the section that it was made from."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex._checks import check_open
from sphistex._section import Section, resolve_section
from sphistex.tl._cut import moved_px
from sphistex.tl._expression import find_table
from sphistex.tl._trust import made_how

# A superpixel belongs to a spot that covers this share of it.
_INSIDE = 0.5


def find_result(sdata: SpatialData, table_key: str) -> tuple[AnnData, dict[str, Any]]:
    """Table of a result, and how it was made, whatever name it is stored under now.

    Raises
    ------
    KeyError
        If there is no table of that name.
    ValueError
        If it is no result, has no superpixels or genes, or is a lazy one that was not opened.
    """
    table = find_table(sdata, table_key)
    try:
        made = made_how(table, table_key)
    except ValueError:
        made = {}
    if "section" not in made or not {"array_row", "array_col"} <= set(table.obs):
        results = [name for name, other in sdata.tables.items() if "section" in other.uns.get(name, {})]
        raise ValueError(
            f"table_key={table_key!r} is a table, but not a result of sphistex.tl.super_resolve; results are {results}"
        )
    check_open(table, table_key)
    return table, made


def section_of(sdata: SpatialData, made: dict[str, Any], table_key: str) -> Section:
    """The image, spots and counts that a result was made from.

    Raises
    ------
    KeyError, ValueError
        If they are gone, or it was made from an image alone.
    """
    if not made.get("spots", True):
        raise ValueError(f"table_key={table_key!r} was predicted from an image alone: there are no spots")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what there is to say was said when the result was made
        return resolve_section(sdata, mpp=float(made["mpp"]), **made["section"])


def spot_of_each(sdata: SpatialData, section: Section, table: AnnData, made: dict[str, Any]) -> NDArray[np.intp]:
    """The spot that each superpixel (n_superpixels,) lies in, -1 where there is none."""
    grid, share = section.grid, section.bags.weights.tocoo()
    inside = share.data >= _INSIDE
    of_place = np.full(grid.size, -1, dtype=np.intp)
    of_place[share.col[inside]] = share.row[inside]
    centres = np.asarray(table.obsm["spatial"]) + moved_px(sdata, table, made)
    column, row = np.floor(centres / grid.pitch_px).astype(np.intp).T
    # of an image that was cut, superpixels on the edge may lie with their centre beyond it
    inside = (row >= 0) & (row < grid.shape[0]) & (column >= 0) & (column < grid.shape[1])
    return np.where(inside, of_place[np.where(inside, row * grid.shape[1] + column, 0)], -1)
