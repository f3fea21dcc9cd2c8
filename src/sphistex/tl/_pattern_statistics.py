"""How patterned maps are, by squidpy: Moran's I, Geary's C, sepal, and how much there is finer than the spots."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter

from sphistex.settings import settings
from sphistex.tl._bins import Places

# Of a place inside each lattice that sepal can diffuse on.
NEIGHBOURS = {"hexagonal": 6, "square": 4}
# Sepal: length of a step, the change of the entropy in a step at which diffusion has come to its end, and steps after
# which it is not waited for.
_STEP, _AT_REST, _MOST_STEPS = 0.1, 1e-5, 5_000
# A Gaussian's full width at half maximum, in standard deviations.
_FULL_WIDTH = 2.355


def autocorrelation(places: Places, values: NDArray[np.float32], statistic: str) -> NDArray[np.float64]:
    """Moran's I (``"moran"``) or Geary's C (``"geary"``) of values (n_places, n_genes) between lattice neighbours."""
    import squidpy as sq  # here, as it takes seconds

    adata = _as_anndata(places.xy, values, places.graph)
    found = sq.gr.spatial_autocorr(
        adata, mode=statistic, genes=list(adata.var_names), n_jobs=1, show_progress_bar=False, copy=True
    )
    return found["I" if statistic == "moran" else "C"].reindex(adata.var_names).to_numpy()


def fine_structure(bins: Places, values: NDArray[np.float32], width: float) -> NDArray[np.float64]:
    """How much structure values (n_bins, n_genes) in square bins have below a width in bins, (n_genes,).

    What a Gaussian of this full width at half maximum leaves of them is judged by the covariance of neighbours: Moran's
    I times the variance, as I alone says how smooth a map is and not how much of it there is. Of the covariance, the
    root is taken, so that it is in units of the values.
    """
    left = below(bins, values, width)
    variance = left.var(0, dtype=np.float64)
    covariance = np.where(variance > 0, autocorrelation(bins, left, "moran") * variance, 0)
    return np.sqrt(np.maximum(covariance, 0))


def below(bins: Places, values: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """Values (n_bins, n_genes) in square bins, less their smoothing by a Gaussian of a width in bins."""
    column, row = bins.xy.astype(int).T
    picture = np.zeros((row.max() + 1, column.max() + 1), dtype=np.float32)

    def smooth(of_bins: NDArray) -> NDArray:
        picture[row, column] = of_bins
        return gaussian_filter(picture, width / _FULL_WIDTH, mode="constant")[row, column]

    inside = smooth(np.ones(len(row)))  # how much of the Gaussian lies on bins
    return np.stack([gene - smooth(gene) / inside for gene in values.T], axis=1)


def sepal(places: Places, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Time that diffusion takes to even values (n_places, n_genes) out, in units of the squared pitch."""
    import squidpy as sq

    n, apart = len(values), places.xy.max(0, keepdims=True) + 10 * places.pitch
    adata = _as_anndata(
        np.concatenate([places.xy, apart]), np.concatenate([values, np.zeros_like(values[:1])]), _closed(places)
    )
    found = sq.gr.sepal(
        adata,
        max_neighs=NEIGHBOURS[places.kind],
        genes=list(adata.var_names),
        n_iter=_MOST_STEPS,
        dt=_STEP,
        # squidpy divides the entropy by the number of places: unscaled, many smooth places are at rest at once
        thresh=_AT_REST / n,
        n_jobs=settings.n_workers,
        show_progress_bar=settings.progress,
        copy=True,
    )["sepal_score"]
    return found.reindex(adata.var_names).fillna(_STEP * _MOST_STEPS).to_numpy()


def _closed(places: Places) -> sparse.csr_matrix:
    """Neighbours of each place, itself for each that it lacks, and one place more without any.

    Then nothing flows over the border. Left to squidpy, a place there changes as one farther inside does: what there is
    in all places together drifts, and the time depends on their number more than on the pattern. The place apart is for
    squidpy, which does not expect a lattice without a border.
    """
    graph, most, n = places.graph, NEIGHBOURS[places.kind], len(places.xy)
    own = np.repeat(np.arange(n), most - np.diff(graph.indptr))
    row = np.concatenate([np.repeat(np.arange(n), np.diff(graph.indptr)), own])
    neighbours = np.concatenate([graph.indices, own])[np.argsort(row, kind="stable")]
    ends = np.append(np.arange(n + 1) * most, n * most)
    return sparse.csr_matrix((np.ones(n * most), neighbours, ends), shape=(n + 1, n + 1))


def _as_anndata(xy: NDArray[np.float64], values: NDArray[np.float32], graph: sparse.csr_matrix) -> AnnData:
    """Values of places as squidpy takes them, genes named by their number."""
    var = pd.DataFrame(index=[str(i) for i in range(values.shape[1])])
    return AnnData(values, var=var, obsm={"spatial": xy}, obsp={"spatial_connectivities": graph})
