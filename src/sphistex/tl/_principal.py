"""Principal components of the expression of any number of superpixels, found in a sample of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from tqdm.auto import tqdm

from sphistex.settings import settings
from sphistex.tl._expression import Expression

# Superpixels that the components are found in: directions of so many genes are known to a few percent from these.
_N_SAMPLED = 20_000
# The most variable genes; the others are mostly noise.
_N_GENES = 2000


def principal_components(expression: Expression, n_components: int, seed: int) -> NDArray[np.float32]:
    """Scores (n_obs, at most ``n_components``) of all spots, of the most variable genes.

    Memory grows with the number of spots and components, not with that of genes.
    """
    table, rng = expression.table, np.random.default_rng(seed)
    sample = np.sort(rng.permutation(table.n_obs)[:_N_SAMPLED])
    genes = _most_variable(expression, sample)
    values = np.empty((len(sample), len(genes)), dtype=np.float32)
    for rows, columns, part in expression.blocks(sample, genes):
        values[rows, columns] = part
    found = PCA(min(n_components, *values.shape), svd_solver="randomized", random_state=seed).fit(values)
    scores = np.zeros((table.n_obs, found.n_components_), dtype=np.float32)
    with tqdm(total=scores.shape[0] * len(genes), desc="components", disable=not settings.progress) as bar:
        for rows, columns, part in expression.blocks(genes=genes):
            scores[rows] += (part - found.mean_[columns]) @ found.components_[:, columns].T.astype(np.float32)
            bar.update(part.size)
    return scores


def _most_variable(expression: Expression, sample: NDArray[np.intp]) -> NDArray[np.intp]:
    """Places of the genes that vary most, in the order of the table."""
    n_genes = expression.table.n_vars
    if n_genes <= _N_GENES:
        return np.arange(n_genes)
    sums, squares = np.zeros(n_genes), np.zeros(n_genes)
    for _, genes, values in expression.blocks(sample):
        sums[genes] += values.sum(0, dtype=np.float64)
        squares[genes] += np.square(values, dtype=np.float64).sum(0)
    variance = squares / len(sample) - (sums / len(sample)) ** 2
    return np.sort(np.argsort(-variance, kind="stable")[:_N_GENES])
