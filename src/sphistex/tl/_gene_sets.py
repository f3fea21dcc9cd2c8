"""Gene sets that a user gives, brought together with the genes of a table."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from sphistex.io.gene_sets import read_gmt
from sphistex.tl._gene_names import why_unmatched

GeneSets = str | Path | Mapping[str, Sequence[str]] | Sequence[str]
# Name of the set where genes are given alone.
_ONLY = "genes"


def usable_gene_sets(gene_sets: GeneSets, var: pd.DataFrame, table_key: str, min_genes: int) -> dict[str, list[str]]:
    """Genes of each set that are in the table, of the sets with enough of them.

    Parameters
    ----------
    gene_sets
        A GMT file, genes of several sets by name, or genes of one set.
    var
        ``var`` of the table.
    table_key
        Name of the table.
    min_genes
        Fewest genes of a set that must be in the table.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If the sets cannot be read, are empty, or none has enough genes in the table.

    Warns
    -----
    UserWarning
        If sets have too few genes in the table, or all genes of it: they are left out.
    """
    given = _read(gene_sets)
    genes = {gene for members in given.values() for gene in members}
    inside = set(var.index)
    matched = {name: [gene for gene in dict.fromkeys(members) if gene in inside] for name, members in given.items()}
    usable = {name: members for name, members in matched.items() if min_genes <= len(members) < len(inside)}
    said = f"{len(genes & inside)} of the {len(genes)} genes of {len(given)} gene sets are in table {table_key!r}"
    if not usable:
        reason = (
            why_unmatched(var, sorted(genes), "the gene sets have")
            if not genes & inside
            else (
                f"A set is used if at least min_genes={min_genes} of its genes, and not all of the table's, are in the "
                f"table; the most are {max(map(len, matched.values()))}"
            )
        )
        raise ValueError(f"{said}. {reason}")
    if few := [name for name in matched if name not in usable]:
        warnings.warn(
            f"{said}; {len(few)} sets have fewer than min_genes={min_genes} there, or all the table has, and are left "
            f"out, such as {few[:5]}",
            UserWarning,
            stacklevel=3,
        )
    return usable


def _read(gene_sets: GeneSets) -> dict[str, list[str]]:
    """Sets by name. A slash in a name becomes ``_``: stores cannot hold it."""
    if isinstance(gene_sets, str | Path):
        given = read_gmt(gene_sets)
    elif isinstance(gene_sets, Mapping):
        given = {
            name: [] if isinstance(of, str) or not isinstance(of, Iterable) else list(of)
            for name, of in gene_sets.items()
        }
        if wrong := [name for name, genes in given.items() if not genes]:
            raise TypeError(f"gene_sets: {wrong[:5]} must each be a list of genes, with at least one")
        given = {str(name): [str(gene) for gene in genes] for name, genes in given.items()}
        if not all(name.strip() for name in given):
            raise ValueError("gene_sets: a set has no name, and cannot be stored")
    elif isinstance(gene_sets, pd.DataFrame) or not isinstance(gene_sets, Iterable):
        raise TypeError(
            f"gene_sets is a {type(gene_sets).__name__}: give a GMT file, a dictionary of lists of genes, or one list"
        )
    else:
        given = {_ONLY: [str(gene) for gene in gene_sets]}
    if not any(given.values()):
        raise ValueError("gene_sets is empty: give a GMT file, genes of several sets by name, or genes of one set")
    storable = {name.replace("/", "_"): genes for name, genes in given.items()}
    if len(storable) < len(given):
        raise ValueError("gene_sets: some names differ only in a slash, which becomes _ when they are stored")
    return storable
