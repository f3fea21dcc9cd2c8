"""Genes in parts, so that arrays of all spots and genes are not copied whole."""

from __future__ import annotations

from collections.abc import Iterator

# Numbers of a part: several arrays of double precision of this size fit in little memory.
_MAX_NUMBERS = 4_000_000


def gene_parts(n_rows: int, n_genes: int) -> Iterator[slice]:
    """Slices of the genes of arrays (n_rows, n_genes), one of all where these are small.

    Examples
    --------
    >>> list(gene_parts(100, 1000))
    [slice(0, 1000, None)]
    >>> len(list(gene_parts(4000, 18_000)))
    18
    """
    width = max(1, _MAX_NUMBERS // max(n_rows, 1))
    for first in range(0, n_genes, width):
        yield slice(first, min(first + width, n_genes))
