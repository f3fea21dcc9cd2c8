"""The tissue's superpixels row by row, as methods return them, and the features of all of them block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sphistex.bench.problem import Problem
from sphistex.nn import FeatureMap

# Superpixels from which components are learnt at most; more change nothing.
_LEARNT_FROM = 10_000


def ranks(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Which tissue superpixel each superpixel of the grid is (rows, columns), counted row by row."""
    return (np.cumsum(mask) - 1).reshape(mask.shape)


def tissue_blocks(features: FeatureMap) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Which tissue superpixels (n,) a block holds, and their vectors (n, dim)."""
    rank = ranks(features.mask)
    for rows, columns in features.blocks():
        inside = features.mask[rows, columns]
        yield rank[rows, columns][inside], features.read(rows, columns)[inside]


def components(problem: Problem, n_components: int) -> NDArray[np.float32]:
    """Principal components of the standardised features, the first with unit variance.

    Returns
    -------
    (n_superpixels, n_components), fewer where there are fewer features.
    """
    tissue = np.flatnonzero(problem.mask)
    rng = np.random.default_rng(problem.seed)
    sample = problem.features.gather(np.sort(rng.choice(tissue, min(_LEARNT_FROM, len(tissue)), replace=False)))
    pca = PCA(min(n_components, *sample.shape), random_state=problem.seed)
    reduce = make_pipeline(StandardScaler(), pca).fit(sample)
    out = np.zeros((len(tissue), pca.n_components_), dtype=np.float32)
    for place, vectors in tissue_blocks(problem.features):
        out[place] = reduce.transform(vectors)
    return out / np.sqrt(max(pca.explained_variance_[0], 1e-12))
