"""Which genes of a section are scored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from anndata import AnnData
from scipy import sparse

from sphistex._checks import check_genes
from sphistex.tl._genes import choose_genes

# A number, names, "all", or as many of the most variable as "variable:1000" says.
Genes: TypeAlias = int | Sequence[str] | str
# Followed by how many.
MOST_VARIABLE = "variable:"
# "all" leaves out what is seen in a smaller share of the superpixels.
_SEEN = 0.02


def check_wanted(genes: Genes | None) -> None:
    """Refuse what says no genes.

    Raises
    ------
    TypeError, ValueError
        If ``genes`` is neither a positive number, nor names, nor ``"all"``, nor ``"variable:NUMBER"``.
    """
    if genes is None or is_choice(genes):
        return
    if isinstance(genes, bool | str) or not isinstance(genes, int | Sequence):
        raise TypeError(
            f'genes={genes!r} must be a number of genes, a list of their names, "all", or as "{MOST_VARIABLE}1000"'
        )
    if genes < 2 if isinstance(genes, int) else not genes:
        raise ValueError(f"genes={genes!r}: give at least two genes, or one name")


def is_choice(genes: Genes) -> bool:
    """Whether this says which genes in a word: ``"all"``, or ``"variable:NUMBER"``."""
    if not isinstance(genes, str):
        return False
    number = genes.removeprefix(MOST_VARIABLE)
    return genes == "all" or (number != genes and number.isdecimal() and int(number) > 0)


def held(table: AnnData, wanted: Genes) -> Genes:
    """Of named genes those that the table has, with a warning of the others; what is no names as it is.

    Raises
    ------
    KeyError
        If it has none of them.
    """
    if isinstance(wanted, int | str):
        return wanted
    there = [gene for gene in wanted if gene in table.var_names]
    if missing := sorted(set(wanted) - set(there)):
        warnings.warn(f"genes that the section does not have: {', '.join(missing)}", UserWarning, stacklevel=2)
    return check_genes(table, there or wanted, "genes of the section")


def choose(spots: AnnData, measured: sparse.csr_matrix, wanted: Genes) -> list[str]:
    """Names of the genes to score, in the order of the table.

    Parameters
    ----------
    spots
        Raw counts of the spots at full depth.
    measured
        What was measured in the tissue (n_superpixels, n_genes), sparse.
    wanted
        A number: one half of it the most abundant genes, the other half the most variable of the others, mitochondrial
        ones left out. Names, see :func:`held`. ``"variable:1000"``: as many of the most variable. ``"all"``: those seen
        in at least 2 % of the superpixels.
    """
    if isinstance(wanted, str) and wanted.startswith(MOST_VARIABLE):
        return choose_genes(spots, int(wanted.removeprefix(MOST_VARIABLE)))
    if isinstance(wanted, str):
        seen = np.bincount(measured.indices, weights=measured.data > 0, minlength=spots.n_vars)
        return list(spots.var_names[seen >= _SEEN * measured.shape[0]])
    if not isinstance(wanted, int):
        return check_genes(spots, wanted, "genes of the section")
    nuclear = spots[:, ~spots.var_names.str.lower().str.startswith("mt-")]
    order = np.argsort(-np.asarray(nuclear.X.sum(0)).ravel(), kind="stable")
    abundant, others = order[: wanted // 2], np.sort(order[wanted // 2 :])
    variable = choose_genes(nuclear[:, others], wanted - wanted // 2) if len(others) else []
    chosen = {*variable, *nuclear.var_names[abundant]}
    return [gene for gene in spots.var_names if gene in chosen]
