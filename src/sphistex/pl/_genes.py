"""Which genes are worth a look."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

# The most counted genes, among which patterned ones are looked for, and of how many the maps are in memory at once.
_LOOKED_AT = 200
_AT_ONCE = 16


def most_patterned(
    sdata: SpatialData, table: AnnData, made: dict[str, Any], *, looked_at: int = _LOOKED_AT
) -> list[str]:
    """Genes of a result that are counted often, those first whose maps vary most for their mean.

    Parameters
    ----------
    sdata
        The section, with the spots' counts if there are spots.
    table
        The result.
    made
        How it was made.
    looked_at
        How many genes to look at, the most counted ones.
    """
    names = _most_counted(sdata, table, made)[:looked_at]
    index, score = table.var_names.get_indexer(names), np.empty(len(names))
    for first in range(0, len(names), _AT_ONCE):
        counts = table.X[:, index[first : first + _AT_ONCE]]
        counts = counts.compute() if hasattr(counts, "compute") else counts
        counts = np.asarray(counts.toarray() if sparse.issparse(counts) else counts)
        score[first : first + _AT_ONCE] = counts.var(axis=0) / np.maximum(counts.mean(axis=0), 1e-9)
    return [names[place] for place in np.argsort(-score, kind="stable")]


def _most_counted(sdata: SpatialData, table: AnnData, made: dict[str, Any]) -> list[str]:
    """Genes by their counts in the spots; without spots as they are."""
    spots = sdata.tables.get(made["section"].get("table_key", ""))
    if spots is None or not table.var_names.isin(spots.var_names).all():
        return list(table.var_names)
    counted = np.asarray(spots[:, table.var_names].X.sum(0)).ravel()
    return list(table.var_names[np.argsort(-counted, kind="stable")])
