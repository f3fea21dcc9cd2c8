"""Log-normalised expression of any table, read in parts, so that memory does not grow with the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from sphistex._checks import check_open
from sphistex.tl._lazy import LazyCounts

# Counts per spot after normalisation, and what no logarithm of such counts exceeds.
PER_SPOT = 1e4
_HIGHEST_LOG = np.log1p(PER_SPOT) + 1e-3
# Numbers in memory at once.
_NUMBERS = 8_000_000


@dataclass(frozen=True)
class Expression:
    """Values of a table as log1p of counts scaled to 10,000 (or another number) per spot.

    Parameters
    ----------
    table
        The table; its ``X`` holds counts or such logarithms.
    factor
        By which the counts of each spot (n_obs,) are multiplied before their logarithm is taken; None where ``X`` holds
        logarithms.
    """

    table: AnnData
    factor: NDArray[np.float32] | None

    @classmethod
    def of(cls, table: AnnData, name: str, per_spot: float = PER_SPOT) -> Expression:
        """Expression of the table ``name``, whether it holds counts or logarithms.

        They are counts where all are whole numbers, where one is larger than any logarithm can be, and in results of
        ``super_resolve`` before ``scanpy.pp.log1p``. Predictions from the image alone are logarithms, and may be a
        little below 0.

        Raises
        ------
        ValueError
            If values are missing or not finite, measured ones are negative, or gene names repeat.
        """
        check_open(table, name)
        if not table.var_names.is_unique:
            some = list(table.var_names[table.var_names.duplicated()].unique()[:5])
            raise ValueError(f"table {name!r} has duplicated gene names, such as {some}: make them unique")
        logs, made = cls(table, None), table.uns.get(name, {})
        predicted, resolved = "lattice" in made, "crop" in made
        whole, highest, totals = True, 0.0, np.zeros(table.n_obs)
        for rows, _, values in logs.blocks():
            if not np.isfinite(values).all() or (values.min(initial=0) < 0 and not predicted):
                raise ValueError(
                    f"table {name!r} holds values that are negative, NaN or infinite: give counts, or counts that were "
                    "normalised and logged, not scaled ones"
                )
            whole = whole and not (values % 1).any()
            highest = max(highest, float(values.max(initial=0)))
            totals[rows] += values.sum(1, dtype=np.float64)
        if predicted or "log1p" in table.uns or not (whole or resolved or highest > _HIGHEST_LOG):
            return logs
        return cls(table, np.divide(per_spot, totals, out=np.zeros_like(totals), where=totals > 0).astype(np.float32))

    def read(self, rows: NDArray[np.intp], genes: slice | NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Expression (n_rows, n_genes) of some spots and genes, by default all genes."""
        return self._in_memory(self.table.X[rows] if genes is None else self.table.X[:, genes][rows], rows)

    def _in_memory(self, values: Any, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Expression from what ``X`` holds of the spots ``rows``."""
        values = values.compute() if hasattr(values, "compute") else values
        values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)
        return values if self.factor is None else np.log1p(values * self.factor[rows, None])

    def gene(self, name: str) -> NDArray[np.float32]:
        """Expression (n_obs,) of one gene."""
        place = int(self.table.var_names.get_loc(name))
        return self.read(np.arange(self.table.n_obs), slice(place, place + 1))[:, 0]

    def blocks(
        self, rows: NDArray[np.intp] | None = None, genes: NDArray[np.intp] | None = None
    ) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
        """Some spots and genes, by default all, in the parts that cost least to read.

        Lazy counts are computed for some genes of all spots at once, others are read spot by spot.

        Parameters
        ----------
        rows, genes
            Places of the spots (n_rows,) and of the genes (n_genes,) in the table.

        Yields
        ------
        Which of ``rows``, which of ``genes``, and their expression.
        """
        rows = np.arange(self.table.n_obs) if rows is None else rows
        n_genes = self.table.n_vars if genes is None else len(genes)
        if isinstance(self.table.X, LazyCounts):
            at_once = max(1, _NUMBERS // max(1, len(rows)))
            genes = np.arange(n_genes) if genes is None else genes
            for first in range(0, n_genes, at_once):
                part = slice(first, min(first + at_once, n_genes))
                yield slice(0, len(rows)), part, self.read(rows, genes[part])
            return
        at_once = max(1, _NUMBERS // max(1, self.table.n_vars))
        for first in range(0, len(rows), at_once):
            part = slice(first, min(first + at_once, len(rows)))
            values = self.table.X[rows[part]]
            values = values if genes is None else values[:, genes]
            yield part, slice(0, n_genes), self._in_memory(values, rows[part])

    def by_rows(self, rows: NDArray[np.intp] | None = None) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Some spots, by default all, as many at once as memory allows: which (n,), and their expression."""
        rows = np.arange(self.table.n_obs) if rows is None else rows
        at_once = max(1, _NUMBERS // max(1, self.table.n_vars))
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            yield part, self.read(part)

    def by_genes(self, rows: NDArray[np.intp]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Some genes at once, as many as memory allows: which, and their expression in the spots ``rows``."""
        at_once = max(1, _NUMBERS // max(1, len(rows)))
        for first in range(0, self.table.n_vars, at_once):
            part = slice(first, min(first + at_once, self.table.n_vars))
            yield part, self.read(rows, part)


def find_table(sdata: SpatialData, table_key: str) -> AnnData:
    """A table by name, with spots and genes in it.

    Raises
    ------
    KeyError
        If there is none of that name.
    ValueError
        If it is empty.
    """
    if table_key not in sdata.tables:
        raise KeyError(f"table_key={table_key!r} is not in sdata.tables: {list(sdata.tables)}")
    table = sdata.tables[table_key]
    if not table.n_obs or not table.n_vars:
        raise ValueError(f"table_key={table_key!r} is empty: {table.n_obs} spots × {table.n_vars} genes")
    return table
