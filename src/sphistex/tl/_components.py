"""Principal components that vary more than chance would have it, of values that are read in parts.

What chance would give is known from the same values with random signs, which leave every spot and gene as noisy as it
is (Hong, Sheng and Dobriban, Selecting the number of components in PCA via random signflips, 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

# Reads all values once more, some spots (n_some, n_features) at once.
Read = Callable[[], Iterator[NDArray[np.float32]]]
# Makes what there would be by chance of some spots' differences from the mean.
ByChance = Callable[[NDArray[np.float64], np.random.Generator], NDArray[np.float64]]


def moments(read: Read) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance (n_features,) over all spots."""
    n, sums, squares = 0, np.float64(0), np.float64(0)
    for values in read():
        n += len(values)
        sums = sums + values.sum(0, dtype=np.float64)
        squares = squares + np.square(values, dtype=np.float64).sum(0)
    mean = np.asarray(sums / n)
    return mean, np.maximum(squares / n - mean**2, 0)


def components(
    read: Read, mean: NDArray[np.float64], by_chance: ByChance, most: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Scores (n, 0 to ``most``) of the components that vary more than any by chance, the first with a spread of 1."""
    spread, chance = np.zeros((2, len(mean), len(mean)))
    for values in read():
        differences = values - mean
        spread += differences.T @ differences
        shuffled = by_chance(differences, rng)
        chance += shuffled.T @ shuffled
    last = len(mean) - 1
    highest = eigh(chance, eigvals_only=True, subset_by_index=[last, last])[0]
    found, directions = eigh(spread, subset_by_index=[max(0, last - most + 1), last])
    directions = directions[:, found > highest][:, ::-1]
    scores = np.concatenate([(values - mean) @ directions for values in read()])
    return scores / scores[:, :1].std() if scores.shape[1] else scores


def flipped(differences: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Expression by chance: genes and spots as variable as they are, but no genes going together."""
    return differences * rng.choice([-1.0, 1.0], differences.shape)


def turned(differences: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Copy-number profiles by chance: each as smooth as it is, but from a random window on, and up for down."""
    first = rng.integers(differences.shape[1], size=len(differences))
    windows = (np.arange(differences.shape[1]) + first[:, None]) % differences.shape[1]
    return np.take_along_axis(differences, windows, axis=1) * rng.choice([-1.0, 1.0], (len(differences), 1))
