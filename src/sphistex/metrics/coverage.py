"""How often intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def coverage(lower: NDArray, upper: NDArray, truth: NDArray, expected: NDArray, *, n_bins: int = 10) -> pd.DataFrame:
    """Share of intervals that hold the truth, overall and by how much is expected.

    Parameters
    ----------
    lower, upper
        Ends of the intervals, (n_places, n_genes), which belong to them.
    truth
        What should lie in them.
    expected
        What is predicted; it decides the bins.
    n_bins
        Bins with the same number of predictions each.

    Returns
    -------
    Table with columns ``bin`` (``"all"``, then 1 for the least expected), ``expected`` (its mean), ``coverage``
    and ``n``.

    Examples
    --------
    >>> values = np.arange(20.0)[:, None]
    >>> coverage(values - 1, values + 1, values, values, n_bins=2).coverage.tolist()
    [1.0, 1.0, 1.0]
    """
    held = ((lower <= truth) & (truth <= upper)).ravel()
    flat = np.asarray(expected, dtype=np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    parts = [("all", order), *((i + 1, part) for i, part in enumerate(np.array_split(order, n_bins)))]
    rows = [(name, flat[part].mean(), held[part].mean(), len(part)) for name, part in parts]
    return pd.DataFrame(rows, columns=["bin", "expected", "coverage", "n"])
