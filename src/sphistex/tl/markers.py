"""Genes by which groups of spots differ."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.stats import false_discovery_control
from spatialdata import SpatialData

from sphistex.tl._expression import Expression, find_table
from sphistex.tl._spots import grouped_spots

Method = Literal["wilcoxon", "t-test", "t-test_overestim_var"]
# Of more spots, one in several is compared, but of no group fewer than these: ranks take a sort of every gene for each
# group, and so many spots say as well by which genes groups differ.
_N_COMPARED, _FEWEST = 20_000, 500


def markers(sdata: SpatialData, *, table_key: str, groupby: str, method: Method = "wilcoxon") -> pd.DataFrame:
    """Compare each group of spots with all others, gene by gene, as ``scanpy.tl.rank_genes_groups`` does.

    Parameters
    ----------
    sdata
        SpatialData with the table. It is not changed.
    table_key
        Name of the table, measured or predicted, of counts or of their logarithms.
    groupby
        Column of ``obs``; spots without a value are left out.
    method
        The test.

    Returns
    -------
    Table with one row per group and gene, from the highest score of each group to the lowest: ``group``, ``gene``,
    ``score``, ``log2_fold_change``, ``p``, and ``q``, adjusted by Benjamini and Hochberg over the genes of a group.

    Raises
    ------
    KeyError
        If there is no such table or column.
    ValueError
        If there are fewer than two groups, a group is a single spot, or the table's values cannot be used.

    Notes
    -----
    p counts spots as if they were independent. Neighbouring spots are alike, predicted ones more than measured ones;
    and clusters differ in the genes that they were made of: p ranks genes, and proves nothing about subtypes.

    Of more than 20,000 spots, about so many are compared, evenly spaced in the table within each group.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=1200, n_genes=30)
    >>> spots = sdata.tables["counts"].obs
    >>> spots["side"] = ["left" if column < 10 else "right" for column in spots["array_col"]]
    >>> table = sx.tl.markers(sdata, table_key="counts", groupby="side")
    >>> list(table.columns)
    ['group', 'gene', 'score', 'log2_fold_change', 'p', 'q']
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} must be one of {list(get_args(Method))}")
    table = find_table(sdata, table_key)
    groups = grouped_spots(table, table_key, groupby)
    return rank_genes(Expression.of(table, table_key), groups, method)


def rank_genes(expression: Expression, groups: pd.Series, method: Method = "wilcoxon") -> pd.DataFrame:
    """Table of :func:`markers` for the groups of some spots, by their places in the table."""
    groups = _thinned(groups)
    rows, obs = groups.index.to_numpy(), pd.DataFrame({"group": groups}).set_axis(groups.index.astype(str))
    found = []
    for genes, values in expression.by_genes(rows):
        part = AnnData(values, obs=obs, var=expression.table.var.iloc[genes][[]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # genes that are 0 everywhere
            sc.tl.rank_genes_groups(part, "group", method=method, tie_correct=method == "wilcoxon")
        found.append(sc.get.rank_genes_groups_df(part, group=None))
    ranked = pd.concat(found, ignore_index=True).rename(
        columns={"names": "gene", "scores": "score", "logfoldchanges": "log2_fold_change", "pvals": "p"}
    )
    ranked["score"], ranked["p"] = ranked["score"].fillna(0.0), ranked["p"].fillna(1.0)
    ranked["q"] = ranked.groupby("group", observed=True)["p"].transform(false_discovery_control)
    ranked["group"] = ranked["group"].astype(pd.CategoricalDtype(groups.cat.categories))
    ranked = ranked.sort_values(["group", "score", "gene"], ascending=[True, False, True], ignore_index=True)
    return ranked[["group", "gene", "score", "log2_fold_change", "p", "q"]]


def _thinned(groups: pd.Series) -> pd.Series:
    """Of many spots, evenly spaced ones of each group, in their order."""
    by_group = groups.groupby(groups, observed=True)
    size = by_group.transform("size").to_numpy()
    step = np.minimum(-(-len(groups) // _N_COMPARED), np.maximum(1, size // _FEWEST))
    return groups[by_group.cumcount().to_numpy() % step == 0]
