"""Spatial patterns of genes before and after super-resolution, and of a null in which the image says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from spatialdata import SpatialData

from sphistex._scale import lattice_of
from sphistex._section import Section
from sphistex.settings import settings
from sphistex.tl._expression import PER_SPOT, Expression
from sphistex.tl._genes import choose_genes
from sphistex.tl._inputs import spots_on_tissue, tissue_of
from sphistex.tl._results import find_result, section_of
from sphistex.tl._shuffled import check_repeatable, shuffled_result
from sphistex.tl.fit import check_seed

Statistic = Literal["sepal", "moran", "geary"]
# Bins are no smaller than this, so that those of Visium HD are many counts and few bins.
_SMALLEST_BIN_UM = 64.0
# A bin is looked at where this share of it is tissue.
_FILLED = 0.5
# Lattice neighbours are nearer than this multiple of the pitch.
_NEAR = 1.2
_NEIGHBOURS = {"hexagonal": 6, "square": 4}
# Sepal: length of a step, the change of the entropy in a step at which diffusion has come to its end, and steps after
# which it is not waited for. At a tenth of this change, what squidpy does at borders keeps even noise from its end.
_STEP, _AT_REST, _MOST_STEPS = 0.01, 1e-6, 10_000
# By how much of a superpixel a bin's side may differ from a multiple.
_ROUNDING = 0.01


def spatial_patterns(
    sdata: SpatialData,
    *,
    table_key: str = "superres",
    genes: int | Sequence[str] | Literal["all"] | None = 50,
    statistics: Statistic | Sequence[Statistic] = ("sepal", "moran", "geary"),
    bin_um: float | None = None,
    null: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    """Compare how patterned genes are in the spots, in the superpixels, and in superpixels without an image.

    Sepal, Moran's I and Geary's C are those of squidpy, between neighbours on the lattice of the spots and, after
    super-resolution, on square bins of superpixels about as far apart. Counts of both are scaled to 10,000, over all
    genes of the result, and logged.

    A smooth map is patterned, whatever it shows. Therefore the null: the model is fitted again, with the same
    parameters and seed, to the same spots, with the features of superpixels shuffled among them, and its map is judged
    in the same bins. What this reaches is interpolation and smoothing of the spots; only what lies beyond it is owed to
    the image.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`, and what it was made from: spots, counts,
        feature map and tissue mask. It is not changed.
    table_key
        Name of the result.
    genes
        Names of genes of the result; or how many of the most variable ones in the spots; or ``"all"``, see
        :func:`sphistex.tl.fit`.
    statistics
        Which to compute. ``"sepal"`` takes longer than the others, up to a few seconds for each gene.
    bin_um
        Side of the bins in µm, a multiple of a superpixel's; by default the distance between spots, at least 64 µm.
        Smaller ones are finer than the spots: then compare ``after`` with ``null``, and neither with ``before``. Spots
        that are bins of Visium HD are pooled in the same bins.
    null
        Whether to make the null. It takes what the fit and the prediction took, and while it is made a file of the
        size of the feature map in the cache folder.
    seed
        Seed of the shuffling; by default that of the settings.

    Returns
    -------
    Table with one row per gene and statistic: ``gene``, ``statistic`` (``"sepal"``, ``"moran"``, ``"geary"``),
    ``before`` (spots), ``after`` (superpixels in bins) and ``null``, NaN without one. The more patterned a gene, the
    higher are sepal and Moran's I, and the lower is Geary's C. Sepal is the time that diffusion takes to even a gene
    out, in units of the squared distance between places, and 100 where it takes longer.

    Raises
    ------
    KeyError
        If there is no such result or gene, or what it was made from is gone.
    ValueError
        If a result was made without spots, or, where there is to be a null, of another section's model; if the spots
        lie on no lattice and sepal is wanted; or an argument makes no sense; before any computing.

    Notes
    -----
    The null is one draw, fitted to this section alone also where the result's model was fitted to several. Look at
    many genes at once (:func:`sphistex.pl.patterns`), and at how far a gene lies from the null of all.

    References
    ----------
    Andersson and Lundeberg, sepal: identifying transcript profiles with spatial patterns by diffusion-based modeling,
    Bioinformatics 2021. Squidpy: Palla et al., Nature Methods 2022.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=900, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> table = sx.tl.spatial_patterns(sdata, genes=5, statistics=["moran"])
    >>> list(table.columns)
    ['gene', 'statistic', 'before', 'after', 'null']
    """
    table, made = find_result(sdata, table_key)
    section = section_of(sdata, made, table_key)
    statistics = _checked_statistics(statistics)
    if "log1p" in table.uns:
        raise ValueError(f"table_key={table_key!r} holds logarithms: spatial_patterns takes the counts as predicted")
    chosen = choose_genes(section.table[:, list(table.var_names)], genes)
    bins, factor = _bins(table, section, float(made["pitch_um"]), bin_um)
    measured = _measured(sdata, made, section, bins, factor)
    if "sepal" in statistics:
        for places, argument in ((measured, 'statistics: "sepal"'), (bins, f"bin_um={bin_um!r}")):
            _check_for_sepal(places, argument)
    seed = check_seed(seed)
    if null:
        check_repeatable(sdata, made, section, table, table_key)
    expressed = partial(_logged, names=list(table.var_names), genes=chosen)
    values = {"before": (measured, expressed(section.table, measured)), "after": (bins, expressed(table, bins))}
    if null:
        with shuffled_result(sdata, table, made, section, seed) as without_image:
            values["null"] = bins, expressed(without_image, bins)
    found = pd.concat({name: _judged(*those, chosen, statistics) for name, those in values.items()}, axis=1)
    return found.reset_index() if null else found.reset_index().assign(null=np.nan)


@dataclass(frozen=True)
class _Places:
    """Places on a lattice, and what is added up in each.

    Parameters
    ----------
    pool
        Which rows of a table are added up where (n_places, n_obs).
    xy
        Where the places lie (n_places, 2).
    pitch
        Distance between neighbours.
    kind
        Of the lattice.
    """

    pool: sparse.csc_array
    xy: NDArray[np.float64]
    pitch: float
    kind: str

    @property
    def graph(self) -> sparse.csr_matrix:
        """Which places are neighbours on the lattice (n_places, n_places)."""
        first, second = cKDTree(self.xy).query_pairs(_NEAR * self.pitch, output_type="ndarray").T
        n = len(self.xy)
        one_way = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(n, n))
        return sparse.csr_matrix(one_way + one_way.T)


def _bins(table: AnnData, section: Section, pitch_um: float, bin_um: float | None) -> tuple[_Places, int]:
    """Square bins of superpixels that are tissue for the most part, in units of their side; and the side of one."""
    side = max(section.pitch_um, _SMALLEST_BIN_UM) if bin_um is None else bin_um
    factor = round(side / pitch_um) if np.isfinite(side) else 0
    if factor < 1 or (bin_um is not None and abs(side / pitch_um - factor) > _ROUNDING):
        raise ValueError(f"bin_um={bin_um!r} must be a multiple of {pitch_um:g} µm, the side of a superpixel")
    bin_of = table.obs[["array_row", "array_col"]].to_numpy() // factor
    found, size = np.unique(bin_of, axis=0, return_counts=True)
    found = found[size >= _FILLED * factor**2]
    if not len(found):
        raise ValueError(f"bin_um={side:g}: no bin of this size is tissue for the most part; choose a smaller one")
    return _Places(_pool(bin_of, found), found[:, ::-1].astype(float), 1.0, "square"), factor


def _measured(sdata: SpatialData, made: dict[str, Any], section: Section, bins: _Places, factor: int) -> _Places:
    """The spots on tissue; or of Visium HD the bins, pooled in those of the result."""
    if section.outlines_px is not None:
        superpixel = np.floor(section.xy_px[:, ::-1] / section.grid.pitch_px).astype(int) - np.asarray(made["crop"])
        return replace(bins, pool=_pool(superpixel // factor, bins.xy[:, ::-1].astype(int)))
    kept = np.flatnonzero(spots_on_tissue(section, tissue_of(sdata, section, str(made["tissue_key"]))))
    pool = sparse.eye_array(len(section.xy_px), dtype=np.float32, format="csr")[kept]
    return _Places(sparse.csc_array(pool), section.xy_px[kept], *lattice_of(section.xy_px[kept]))


def _pool(place_of: NDArray[np.intp], places: NDArray[np.intp]) -> sparse.csc_array:
    """What lies in each of the places, (n_places, n) of ones; both are rows and columns, those of places in order."""
    width = max(place_of[:, 1].max(), places[:, 1].max()) + 1
    inside = np.flatnonzero((place_of >= 0).all(1))
    number, numbers = place_of[inside] @ [width, 1], places @ [width, 1]
    row = np.minimum(np.searchsorted(numbers, number), len(numbers) - 1)
    known = numbers[row] == number
    ones = np.ones(int(known.sum()), dtype=np.float32)
    return sparse.csc_array((ones, (row[known], inside[known])), shape=(len(places), len(place_of)))


def _judged(places: _Places, values: NDArray[np.float32], genes: list[str], statistics: list[Statistic]) -> pd.Series:
    """Each statistic of each gene, indexed by both, from their values (n_places, n_genes)."""
    import squidpy as sq  # here, as it takes seconds

    graph = AnnData(
        values,
        var=pd.DataFrame(index=genes),
        obsm={"spatial": places.xy},
        obsp={"spatial_connectivities": places.graph},
    )
    found = {}
    for statistic in statistics:
        if statistic == "sepal":
            scores = sq.gr.sepal(
                graph,
                max_neighs=_NEIGHBOURS[places.kind],
                genes=genes,
                n_iter=_MOST_STEPS,
                dt=_STEP,
                # squidpy divides the entropy by the number of places: unscaled, many smooth places are at rest at once
                thresh=_AT_REST / len(places.xy),
                n_jobs=settings.n_workers,
                show_progress_bar=settings.progress,
                copy=True,
            )["sepal_score"].fillna(_STEP * _MOST_STEPS)
        else:
            autocorrelation = sq.gr.spatial_autocorr(
                graph, mode=statistic, genes=genes, n_jobs=1, show_progress_bar=False, copy=True
            )
            scores = autocorrelation["I" if statistic == "moran" else "C"]
        found[statistic] = scores.reindex(genes)
    return pd.concat(found, names=["statistic", "gene"]).swaplevel()


def _logged(table: AnnData, places: _Places, *, names: list[str], genes: list[str]) -> NDArray[np.float32]:
    """Log-normalised expression (n_places, n_genes) of some genes, scaled over all genes of the result."""
    counts = Expression(table, None)
    totals = np.zeros(table.n_obs)
    for rows, _, values in counts.blocks(genes=table.var_names.get_indexer(names)):
        totals[rows] += values.sum(1, dtype=np.float64)
    sums = np.zeros((len(places.xy), len(genes)))
    for rows, columns, values in counts.blocks(genes=table.var_names.get_indexer(genes)):
        sums[:, columns] += places.pool[:, rows] @ values
    of_all = (places.pool @ totals)[:, None]
    return np.log1p(np.divide(PER_SPOT * sums, of_all, out=np.zeros_like(sums), where=of_all > 0)).astype(np.float32)


def _checked_statistics(statistics: Statistic | Sequence[Statistic]) -> list[Statistic]:
    chosen: list[Any] = [statistics] if isinstance(statistics, str) else list(statistics)
    if not chosen or not set(chosen) <= set(get_args(Statistic)):
        raise ValueError(f"statistics={statistics!r} must be some of {list(get_args(Statistic))}")
    return list(dict.fromkeys(chosen))


def _check_for_sepal(places: _Places, argument: str) -> None:
    """Refuse a lattice that sepal cannot diffuse on."""
    if places.kind not in _NEIGHBOURS:
        raise ValueError("statistics: sepal needs spots on a hexagonal or square lattice, and these lie on none")
    most = int(np.diff(places.graph.indptr).max(initial=0))
    if most != (needed := _NEIGHBOURS[places.kind]):
        raise ValueError(
            f"{argument}: sepal needs places with {needed} neighbours, and the most that one has are {most}: "
            "leave sepal out of statistics=, or choose smaller bins"
        )
