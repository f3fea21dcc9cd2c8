"""Super-resolution tissue annotation: superpixels of like expression, as regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex._checks import is_number
from sphistex.tl._annotate import annotate as add_to_table
from sphistex.tl._annotate import check_own
from sphistex.tl._expression import Expression
from sphistex.tl._on_grid import smoothed, without_fragments
from sphistex.tl._principal import principal_components
from sphistex.tl._results import find_result
from sphistex.tl._stability import k_means, most_stable, stability
from sphistex.tl.fit import check_seed

Method = Literal["kmeans", "leiden"]
# Numbers of clusters to choose from, if nobody says.
_NUMBERS = tuple(range(4, 13))
_N_NEIGHBOURS = 15
# Counts per superpixel before their logarithm is taken: 10,000, as is usual for cells, make the most of genes that are
# next to nothing in the some 30 counts of a superpixel.
_PER_SUPERPIXEL = 1e3


def annotate(
    sdata: SpatialData,
    *,
    table_key: str = "superres",
    method: Method = "kmeans",
    n_clusters: int | Sequence[int] | None = None,
    resolution: float = 0.5,
    n_components: int = 20,
    smooth_um: float = 0.0,
    min_area_um2: float = 1000.0,
    key_added: str = "annotation",
    seed: int | None = None,
) -> None:
    """Divide the tissue of a result into regions: clusters of superpixels by their expression.

    Counts are scaled to 1,000 per superpixel and logged, and of the 2,000 most variable genes principal components
    are taken, each divided by the square root of its spread, in which superpixels are clustered. Small fragments are
    then merged into the region around them.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`, lazy or not.
    table_key
        Name of the result.
    method
        ``"kmeans"``, as in the HISTEX paper, found in 50,000 superpixels; or ``"leiden"``, communities in the graph of
        the 15 nearest neighbours, through scanpy, which takes minutes from some 100,000 superpixels on.
    n_clusters
        Number of clusters of k-means; or several to choose from, by default 4 to 12: the one whose clusters are most
        alike when they are found in random halves of the superpixels, and of several as stable ones the largest.
    resolution
        Of ``"leiden"``: the higher, the more clusters.
    n_components
        Principal components.
    smooth_um
        Sigma of a Gaussian by which the components are smoothed over the tissue before clustering; 0 does not.
    min_area_um2
        Fragments, superpixels of one label that share sides, of a smaller area are merged into the label that borders
        them most; 0 merges none. A superpixel has 64 µm².
    key_added
        Column of ``obs`` to add. What an earlier call added is replaced.
    seed
        Seed of everything random; by default that of the settings.

    Returns
    -------
    Nothing. To the table are added:

    - ``obs[key_added]``: categorical, ``"1"`` for the largest region, and so on;
    - ``uns[key_added]``: ``params``, and where a number was chosen ``stability``, a table: the mean adjusted Rand
      index between the clusterings of random halves, for each number of clusters.

    Raises
    ------
    KeyError
        If there is no such result.
    ValueError
        If an argument makes no sense, or the table's values cannot be used; before any computing.

    See Also
    --------
    sphistex.tl.markers : Genes by which the regions differ.
    sphistex.metrics.agreement : How well they agree with another annotation.
    sphistex.tl.transfer_annotation : Regions as they were annotated in the spots.

    Notes
    -----
    Beside the table, memory grows with the number of superpixels times ``n_components``. Of a lazy result all genes
    are computed once or twice, a few at a time.

    Regions are places of like *predicted* expression. What the image does not show and the spots are too coarse for is
    no region, and k-means divides also what changes by degrees.

    References
    ----------
    Tissue annotation: HISTEX, MICCAI 2025. Stability: Ben-Hur, Elisseeff and Guyon, A stability based method for
    discovering structure in clustered data, Pacific Symposium on Biocomputing 2002.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> sx.tl.annotate(sdata, n_clusters=3)
    >>> list(sdata.tables["superres"].obs["annotation"].cat.categories)
    ['1', '2', '3']
    """
    table, made = find_result(sdata, table_key)
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} must be one of {list(get_args(Method))}")
    numbers = _checked_numbers(n_clusters, method, table.n_obs)
    _check_numbers(resolution, n_components, smooth_um, min_area_um2)
    seed = check_seed(seed)
    check_own(table, table_key, key_added, "annotate", there=key_added in table.obs)
    mask = on_grid(table, table_key)
    expression = Expression.of(table, table_key, per_spot=_PER_SUPERPIXEL)

    pitch_um = float(made["pitch_um"])
    points = _evened(principal_components(expression, n_components, seed))
    if smooth_um:
        points = smoothed(points, mask, smooth_um / pitch_um)
    record: dict[str, Any] = {"made_by": "annotate"}
    params = {
        "method": method,
        "n_components": n_components,
        "smooth_um": smooth_um,
        "min_area_um2": min_area_um2,
        "seed": seed,
    }
    if method == "leiden":
        codes, params["resolution"] = _leiden(points, resolution, seed), resolution
    else:
        if len(numbers) > 1:
            judged = record["stability"] = stability(points, numbers, seed)
            numbers = [most_stable(judged)]
        codes, params["n_clusters"] = k_means(points, numbers[0], seed), numbers[0]
    if min_area_um2:
        codes = without_fragments(codes, mask, min_area_um2 / pitch_um**2)
    regions = by_size(codes)
    add_to_table(sdata, table_key, partial(_add, regions=regions, record=record | {"params": params}, name=key_added))


def on_grid(table: AnnData, name: str) -> NDArray[np.bool_]:
    """Where on the grid the superpixels of a result lie (rows, columns).

    Raises
    ------
    ValueError
        If they were put into another order.
    """
    row, column = table.obs[["array_row", "array_col"]].to_numpy().T
    mask = np.zeros((row.max() + 1, column.max() + 1), dtype=bool)
    mask[row, column] = True
    if not np.array_equal(np.argwhere(mask), np.stack([row, column], 1)):
        raise ValueError(f"table {name!r} has been reordered: its superpixels must stand row by row, as they were made")
    return mask


def by_size(codes: NDArray[np.intp]) -> pd.Categorical:
    """Labels as a categorical: ``"1"`` is the largest."""
    found, codes = np.unique(codes, return_inverse=True)
    order = np.argsort(-np.bincount(codes), kind="stable")
    return pd.Categorical.from_codes(np.argsort(order)[codes], [str(number) for number in range(1, len(found) + 1)])


def _checked_numbers(n_clusters: int | Sequence[int] | None, method: Method, n_superpixels: int) -> list[int]:
    if method == "leiden":
        if n_clusters is not None:
            raise ValueError(f'n_clusters={n_clusters!r}: method="leiden" finds its own number, see resolution=')
        return []
    if n_clusters is None:
        n_clusters = _NUMBERS
    numbers = list(n_clusters) if isinstance(n_clusters, Iterable) else [n_clusters]
    if not numbers or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 2 for n in numbers):
        raise ValueError(f"n_clusters={n_clusters!r}: give a number of clusters from 2 on, or several to choose from")
    if n_superpixels < 2 * max(numbers):
        raise ValueError(f"n_clusters={n_clusters!r}: there are {n_superpixels} superpixels, too few to cluster")
    return sorted({int(n) for n in numbers})


def _check_numbers(resolution: float, n_components: int, smooth_um: float, min_area_um2: float) -> None:
    if isinstance(n_components, bool) or not isinstance(n_components, int | np.integer) or n_components < 1:
        raise ValueError(f"n_components={n_components!r} must be a whole number of at least 1")
    if not (is_number(resolution) and resolution > 0):
        raise ValueError(f"resolution={resolution!r} must be a number above 0")
    for name, value in (("smooth_um", smooth_um), ("min_area_um2", min_area_um2)):
        if not (is_number(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be a number of at least 0")


def _evened(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Components (n, n_components) whose spreads are their square roots.

    Of a predicted map the first one or two have most of the variance, and would be cut into slices while structures
    that differ in the others stay together; with the same spread for all, clusters would be made of noise.
    """
    return points / np.sqrt(np.maximum(points.std(0), 1e-12))


def _leiden(points: NDArray[np.float32], resolution: float, seed: int) -> NDArray[np.intp]:
    """Communities of superpixels (n,) in the graph of nearest neighbours."""
    graph = AnnData(points)
    sc.pp.neighbors(graph, n_neighbors=_N_NEIGHBOURS, use_rep="X", random_state=seed)
    sc.tl.leiden(graph, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return graph.obs["leiden"].cat.codes.to_numpy().astype(np.intp)


def _add(table: AnnData, *, regions: pd.Categorical, record: dict[str, Any], name: str) -> None:
    table.obs[name] = regions
    table.uns[name] = record
    table.uns.pop(f"{name}_colors", None)  # those of other regions
