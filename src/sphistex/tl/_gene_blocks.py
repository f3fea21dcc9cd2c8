"""A table's values a few genes at a time, whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

# Numbers in memory at once.
_NUMBERS = 16_000_000


def gene_blocks(values: Any, columns: NDArray[np.intp]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Some columns of an array, a sparse matrix or a dask array: which of ``columns``, and their values (n_obs, n)."""
    at_once = max(1, _NUMBERS // max(1, values.shape[0]))
    for first in range(0, len(columns), at_once):
        part = slice(first, min(first + at_once, len(columns)))
        yield part, _dense(values[:, columns[part]]).astype(np.float64)


def _dense(values: Any) -> NDArray[Any]:
    """An array in memory."""
    values = values.compute() if hasattr(values, "compute") else values
    return np.asarray(values.toarray() if sparse.issparse(values) else values)
