"""Which genes to predict."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from anndata import AnnData

from sphistex._checks import check_genes

logger = logging.getLogger("sphistex")

DEFAULT_N_GENES = 1000
ALL = "all"
# A gene seen in fewer spots than this share, and in fewer than this number, has no pattern to learn.
_MIN_SPOTS, _ENOUGH_SPOTS = 0.02, 100
# Numbers that ranking the genes holds in memory at once.
_MAX_RANKED = 50_000_000


def choose_genes(table: AnnData, genes: int | Sequence[str] | str | None, name: str = "table") -> list[str]:
    """Names of the genes to predict, in the order of the table.

    Parameters
    ----------
    table
        Raw counts of the spots.
    genes
        A list of names; or how many highly variable genes (by Pearson residuals, as in
        ``scanpy.experimental.pp.highly_variable_genes``); None for 1,000; or ``"all"`` that are seen in enough spots:
        in 2 % of them, or in 100 where that is less.
    name
        What the table is called in messages.

    Raises
    ------
    KeyError, TypeError, ValueError
        If genes are not in the table or none of them has counts, or the argument makes no sense.

    Warns
    -----
    UserWarning
        If named genes have no counts: they are left out.
    """
    if isinstance(genes, str) and genes != ALL:
        raise TypeError(f'genes={genes!r} is a string: pass a list such as [{genes!r}], a number of genes, or "all"')
    if genes is not None and not isinstance(genes, int | np.integer | str):
        if not isinstance(genes, Iterable):
            raise TypeError(f"genes={genes!r} must be a whole number of genes, a list of their names, or {ALL!r}.")
        return _with_counts(table, check_genes(table, genes, name))
    wanted = DEFAULT_N_GENES if genes is None else table.n_vars if genes == ALL else int(genes)
    if wanted < 1 or isinstance(genes, bool):
        raise ValueError(f"genes={genes!r} must be a positive number of genes, a list of their names, or {ALL!r}.")
    seen = np.asarray((table.X > 0).sum(0)).ravel() >= np.clip(_MIN_SPOTS * table.n_obs, 1, _ENOUGH_SPOTS)
    if not seen.any():
        raise ValueError(f"no gene is seen in {_MIN_SPOTS:.0%} of the {table.n_obs} spots: are these the raw counts?")
    if genes == ALL:
        least = int(np.ceil(np.clip(_MIN_SPOTS * table.n_obs, 1, _ENOUGH_SPOTS)))
        logger.info("%d genes, and %d left out that are seen in fewer than %d spots", seen.sum(), (~seen).sum(), least)
    if seen.sum() <= wanted:
        return list(table.var_names[seen])
    import scanpy as sc

    with warnings.catch_warnings():
        # what there is to say of the counts was said when they were checked
        warnings.filterwarnings("ignore", message=".*expects raw count data.*", category=UserWarning)
        ranked = sc.experimental.pp.highly_variable_genes(
            AnnData(table.X[:, seen], obs=table.obs[[]], var=table.var.loc[seen, []]),
            n_top_genes=wanted,
            chunksize=int(np.clip(_MAX_RANKED // table.n_obs, 1, 1000)),
            inplace=False,
        )
    return list(table.var_names[seen][np.asarray(ranked["highly_variable"])])


def _with_counts(table: AnnData, names: list[str]) -> list[str]:
    """The genes that were counted in any spot; says which were not."""
    counted = np.asarray(table[:, names].X.sum(0)).ravel() > 0
    if not counted.any():
        raise ValueError(f"genes={names!r}: none of them has a count in any of the {table.n_obs} spots")
    if not counted.all():
        never = ", ".join(np.array(names)[~counted])
        warnings.warn(f"genes without counts in the spots are left out: {never}", UserWarning, stacklevel=2)
    return np.array(names)[counted].tolist()
