"""Clusters of any number of points, and how many there are: as many as are found again in other parts of the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from tqdm.auto import tqdm

from sphistex.settings import settings

# Points that clusters are found in: in mini-batches of all points they come out less compact, and less alike each time.
_N_FITTED = 50_000
# Points that are looked at to choose a number, halves of these that are clustered, and beginnings of each clustering.
_N_JUDGED, _N_HALVES, _N_BEGINNINGS = 10_000, 6, 5
# Numbers that differ by no more than this are as stable: two clusters are as easily found again as the four in them.
_AS_STABLE = 0.02


def k_means(points: NDArray[np.float32], n_clusters: int, seed: int) -> NDArray[np.intp]:
    """Cluster of each point (n,), found in a sample of them."""
    return _fitted(_sample(points, _N_FITTED, seed), n_clusters, seed).predict(points).astype(np.intp)


def stability(points: NDArray[np.float32], numbers: Sequence[int], seed: int) -> pd.DataFrame:
    """How alike clusterings of random halves of the points are, for several numbers of clusters.

    Each clustering says of all points to which of its clusters they belong; two are compared by the adjusted Rand
    index. 1: the same clusters whichever half is looked at.

    Returns
    -------
    Columns ``n_clusters`` and ``stability``, the mean over all pairs of clusterings.
    """
    rng = np.random.default_rng(seed)
    points = _sample(points, _N_JUDGED, seed)
    halves = [rng.permutation(len(points))[: len(points) // 2] for _ in range(_N_HALVES)]
    found = []
    for n in tqdm(numbers, desc="stability", unit="number of clusters", disable=not settings.progress):
        labels = [_fitted(points[half], n, seed + i).predict(points) for i, half in enumerate(halves)]
        found.append(float(np.mean([adjusted_rand_score(*pair) for pair in combinations(labels, 2)])))
    return pd.DataFrame({"n_clusters": list(numbers), "stability": found})


def most_stable(judged: pd.DataFrame) -> int:
    """The number with the highest stability, and of several as stable ones the largest."""
    stable = judged["stability"] >= judged["stability"].max() - _AS_STABLE
    return int(judged.loc[stable, "n_clusters"].max())


def _fitted(points: NDArray[np.float32], n_clusters: int, seed: int) -> KMeans:
    return KMeans(n_clusters, n_init=_N_BEGINNINGS, random_state=seed).fit(points)


def _sample(points: NDArray[np.float32], most: int, seed: int) -> NDArray[np.float32]:
    return points[np.sort(np.random.default_rng(seed).permutation(len(points))[:most])]
