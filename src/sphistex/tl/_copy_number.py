"""Copy-number profiles from expression, by infercnvpy."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from sphistex.settings import settings
from sphistex.tl._expression import Expression

# Both sexes' and the mitochondria's chromosomes differ between people and cells for other reasons.
_LEFT_OUT = ("chrX", "chrY", "chrM", "chrMT")
# A mean of fewer genes is not about the chromosome.
_FEWEST_GENES = 10


def placed_genes(var: pd.DataFrame, positions: pd.DataFrame) -> pd.DataFrame:
    """Positions of the genes of a table (n_genes), NaN where there is none or the gene's chromosome is not used."""
    placed = positions.reindex(var.index)
    size = placed["chromosome"].value_counts()
    used = size.index[(size >= _FEWEST_GENES) & ~size.index.isin(_LEFT_OUT)]
    return placed.where(placed["chromosome"].isin(used))


def shuffled(placed: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The same positions, but of other genes each."""
    genes = np.flatnonzero(placed["chromosome"].notna())
    order = np.arange(len(placed))
    order[genes] = rng.permutation(genes)
    return placed.iloc[order].set_axis(placed.index)


def copy_number(
    expression: Expression,
    placed: pd.DataFrame,
    *,
    reference: NDArray[np.intp],
    window_size: int,
    step: int,
    rows: NDArray[np.intp] | None = None,
) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Profiles (n_rows, n_windows) of some spots, and the first window of each chromosome.

    Parameters
    ----------
    expression
        Of all spots and genes.
    placed
        Positions of the genes, from :func:`placed_genes`.
    reference
        Spots whose mean is taken to be diploid.
    window_size, step
        Genes that are averaged, and by how many genes windows lie apart.
    rows
        The spots; by default all.
    """
    from infercnvpy.tl import infercnv

    genes = np.flatnonzero(placed["chromosome"].notna())
    # infercnvpy indexes names as a numpy array, which pandas 3 keeps only of objects
    var = placed.iloc[genes].set_axis(placed.index[genes].astype(object))
    mean = np.zeros(len(genes))
    for _, values in expression.by_rows(reference):
        mean += values[:, genes].sum(0, dtype=np.float64) / len(reference)
    profiles: list[NDArray[np.float32]] = []
    n_rows = expression.table.n_obs if rows is None else len(rows)
    with tqdm(total=n_rows, desc="copy number", unit="spot", disable=not settings.progress) as bar:
        for _, values in expression.by_rows(rows):
            part = AnnData(values[:, genes], var=var)
            with contextlib.redirect_stderr(io.StringIO()):  # a bar of infercnvpy's own for each part
                starts, found, _ = infercnv(
                    part,
                    reference=mean,
                    window_size=window_size,
                    step=step,
                    # The noise would be estimated in each part by itself, and is what the clusters' spread is for.
                    dynamic_threshold=None,
                    exclude_chromosomes=None,
                    chunksize=len(values),
                    n_jobs=1,
                    inplace=False,
                )
            profiles.append(found.toarray().astype(np.float32))
            bar.update(len(values))
    return np.concatenate(profiles), {name: int(first) for name, first in starts.items()}
