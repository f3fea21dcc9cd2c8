"""Which genes of a section are scored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from anndata import AnnData
from scipy import sparse

from sphistex._checks import check_genes
from sphistex.tl._genes import choose_genes

Genes: TypeAlias = int | Sequence[str] | Literal["all"]
# "all" leaves out what is seen in a smaller share of the superpixels.
_SEEN = 0.02


def check_wanted(genes: Genes | None) -> None:
    """Refuse what says no genes.

    Raises
    ------
    TypeError, ValueError
        If ``genes`` is neither a positive number, nor names, nor ``"all"``.
    """
    if genes is None or (isinstance(genes, str) and genes == "all"):
        return
    if isinstance(genes, bool | str) or not isinstance(genes, int | Sequence):
        raise TypeError(f'genes={genes!r} must be a number of genes, a list of their names, or "all"')
    if genes < 2 if isinstance(genes, int) else not genes:
        raise ValueError(f"genes={genes!r}: give at least two genes, or one name")


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
        ones left out. Names: those that the section has. ``"all"``: those seen in at least 2 %
        of the superpixels.

    Raises
    ------
    KeyError
        If the section has none of the named genes.
    """
    if isinstance(wanted, str):
        seen = np.bincount(measured.indices, weights=measured.data > 0, minlength=spots.n_vars)
        return list(spots.var_names[seen >= _SEEN * measured.shape[0]])
    if not isinstance(wanted, int):
        held = [gene for gene in wanted if gene in spots.var_names]
        if missing := sorted(set(wanted) - set(held)):
            warnings.warn(f"genes that the section does not have: {', '.join(missing)}", UserWarning, stacklevel=2)
        return check_genes(spots, held or wanted, "genes of the section")
    nuclear = spots[:, ~spots.var_names.str.lower().str.startswith("mt-")]
    order = np.argsort(-np.asarray(nuclear.X.sum(0)).ravel(), kind="stable")
    abundant, others = order[: wanted // 2], np.sort(order[wanted // 2 :])
    variable = choose_genes(nuclear[:, others], wanted - wanted // 2) if len(others) else []
    chosen = {*variable, *nuclear.var_names[abundant]}
    return [gene for gene in spots.var_names if gene in chosen]
