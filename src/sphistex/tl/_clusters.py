"""Clusters of spots, how many there are, and whether they are clearer than chance."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

# Spots whose mean silhouette stands for that of all: it takes all distances between them.
_N_JUDGED = 3000
# Samples of spots without subtypes; the clearest clusters among these are chance at a level of 5 %.
_N_SAMPLES = 20
# Of several numbers of clusters, one with a cluster of a smaller share of the spots is not chosen: that is a few odd
# spots.
_SMALLEST_SHARE = 0.05


def best_clusters(
    points: NDArray[np.float64], numbers: list[int], seed: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], dict[str, Any]]:
    """Clusters (n,), 0 the largest, of the number with the highest silhouette; and how clear they are.

    A single one where there are no components in which the spots could differ.
    """
    if not points.shape[1]:
        warnings.warn("the tumour spots differ by no more than chance: they are all of one subtype", stacklevel=3)
        return np.zeros(len(points), dtype=np.intp), {}
    labels = {n: _k_means(points, n, seed) for n in numbers}
    silhouette = np.array([_silhouette(points, labels[n], seed) for n in numbers])
    smallest = np.array([np.bincount(labels[n]).min() for n in numbers])
    large = smallest >= _SMALLEST_SHARE * len(points)
    best = int(np.argmax(np.where(large | ~large.any(), silhouette, -np.inf)))
    shapeless = _silhouette_by_chance(points, numbers[best], seed, rng)
    if silhouette[best] <= shapeless:
        warnings.warn(
            f"{numbers[best]} clusters have a mean silhouette of {silhouette[best]:.2f}, and those of spots without "
            f"any subtypes may have {shapeless:.2f}: the tumour spots differ, but by degrees",
            UserWarning,
            stacklevel=3,
        )
    by_size = np.argsort(-np.bincount(labels[numbers[best]]), kind="stable")
    judged = pd.DataFrame({"n_subtypes": numbers, "silhouette": silhouette, "smallest": smallest})
    return np.argsort(by_size)[labels[numbers[best]]], {"silhouette": judged, "silhouette_by_chance": shapeless}


def _silhouette_by_chance(points: NDArray[np.float64], n: int, seed: int, rng: np.random.Generator) -> float:
    """The highest mean silhouette in samples of a normal distribution with the spread of the points."""
    shape = min(len(points), _N_JUDGED), points.shape[1]
    samples = (rng.normal(size=shape) * points.std(0) for _ in range(_N_SAMPLES))
    return max(_silhouette(sample, _k_means(sample, n, seed), seed) for sample in samples)


def _k_means(points: NDArray[np.float64], n: int, seed: int) -> NDArray[np.intp]:
    return KMeans(n, n_init=10, random_state=seed).fit_predict(points).astype(np.intp)


def _silhouette(points: NDArray[np.float64], labels: NDArray[np.intp], seed: int) -> float:
    few = len(points) > _N_JUDGED
    return float(silhouette_score(points, labels, sample_size=_N_JUDGED if few else None, random_state=seed))
