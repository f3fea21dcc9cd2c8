"""Principal components that vary more than chance would have it (parallel analysis), of values read in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

# Reads all values, the same each time, some spots (n_some, n_features) at once.
Read = Callable[[], Iterator[NDArray[np.floating]]]
# By how much a component must vary more than the first one of a sample of chance: such samples differ by a few percent.
_MARGIN = 1.1


def moments(read: Read) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance (n_features,) over all spots."""
    n, sums, squares = 0, np.float64(0), np.float64(0)
    for values in read():
        n += len(values)
        sums = sums + values.sum(0, dtype=np.float64)
        squares = squares + np.square(values, dtype=np.float64).sum(0)
    mean = np.asarray(sums / n)
    return mean, np.maximum(squares / n - mean**2, 0)


def components(read: Read, by_chance: Read, most: int) -> NDArray[np.float64]:
    """Scores (n, 0 to ``most``) of the components that vary more than chance has it, the first with a spread of 1.

    Parameters
    ----------
    read
        The values.
    by_chance
        As many values, with nothing in common between spots but chance.
    most
        At most so many components.
    """
    mean, spread = _spread(read)
    last = len(mean) - 1
    highest = eigh(_spread(by_chance)[1], eigvals_only=True, subset_by_index=[last, last])[0]
    found, directions = eigh(spread, subset_by_index=[max(0, last - most + 1), last])
    directions = directions[:, found > _MARGIN * highest][:, ::-1]
    scores = np.concatenate([(values - mean) @ directions for values in read()])
    return scores / scores[:, :1].std() if scores.shape[1] else scores


def _spread(read: Read) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (n_features,), and sum of the products of differences from it (n_features, n_features)."""
    mean, _ = moments(read)
    spread = np.zeros((len(mean), len(mean)))
    for values in read():
        differences = values - mean
        spread += differences.T @ differences
    return mean, spread
