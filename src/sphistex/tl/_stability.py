"""How many clusters there are: as many as are found again in other parts of the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score
from tqdm.auto import tqdm

from sphistex.settings import settings

# Halves of the points that are clustered, and how many of all points are looked at.
_N_HALVES, _N_JUDGED = 6, 20_000
# Points that k-means looks at in a step, and beginnings of which the best is taken.
_BATCH, _N_BEGINNINGS = 4096, 5


def k_means(points: NDArray[np.float32], n_clusters: int, seed: int) -> MiniBatchKMeans:
    """Clusters of points (n, n_components), found in batches."""
    return MiniBatchKMeans(n_clusters, batch_size=_BATCH, n_init=_N_BEGINNINGS, random_state=seed).fit(points)


def stability(points: NDArray[np.float32], numbers: Sequence[int], seed: int) -> pd.DataFrame:
    """How alike clusterings of random halves of the points are, for several numbers of clusters.

    Each clustering says of all points to which of its clusters they belong; two are compared by the adjusted Rand
    index. 1: the same clusters whichever half is looked at.

    Returns
    -------
    Columns ``n_clusters`` and ``stability``, the mean over all pairs of clusterings.
    """
    rng = np.random.default_rng(seed)
    points = points[rng.permutation(len(points))[:_N_JUDGED]]
    halves = [rng.permutation(len(points))[: len(points) // 2] for _ in range(_N_HALVES)]
    found = []
    for n in tqdm(numbers, desc="stability", unit="number of clusters", disable=not settings.progress):
        labels = [k_means(points[half], n, seed + i).predict(points) for i, half in enumerate(halves)]
        found.append(float(np.mean([adjusted_rand_score(*pair) for pair in combinations(labels, 2)])))
    return pd.DataFrame({"n_clusters": list(numbers), "stability": found})
