"""Binomial thinning: two independent halves of the same counts, for validation without another measurement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def thin_counts(
    counts: NDArray | sparse.spmatrix, *, share: float = 0.5, seed: int = 0
) -> tuple[NDArray | sparse.csr_matrix, NDArray | sparse.csr_matrix]:
    """Split counts into two parts, each molecule going to the first with probability ``share``.

    Where the counts are Poisson the two parts are independent given the rates.

    Parameters
    ----------
    counts
        Raw counts of any shape; a sparse matrix gives two sparse matrices.
    share
        Expected share of the counts in the first part, between 0 and 1.
    seed
        Seed of the random draw.

    Returns
    -------
    The two parts; they add up to ``counts``.

    Raises
    ------
    ValueError
        If counts are not whole numbers.

    Examples
    --------
    >>> import numpy as np
    >>> first, second = thin_counts(np.array([[4, 0], [10, 2]]), seed=1)
    >>> (first + second).tolist()
    [[4, 0], [10, 2]]
    """
    rng = np.random.default_rng(seed)
    if sparse.issparse(counts):
        whole = sparse.csr_matrix(counts)
        first = whole.copy()
        first.data = rng.binomial(_molecules(whole.data), share).astype(whole.dtype)
        return first, sparse.csr_matrix(whole - first)
    first = rng.binomial(_molecules(counts), share).astype(np.asarray(counts).dtype)
    return first, counts - first


def _molecules(counts: NDArray) -> NDArray[np.int64]:
    whole = np.rint(counts)
    if not np.array_equal(whole, counts) or whole.min(initial=0) < 0:
        raise ValueError(
            "counts are not whole numbers, so that they cannot be thinned into two halves: pass raw counts, "
            "neither normalised nor shared out by area"
        )
    return whole.astype(np.int64)
