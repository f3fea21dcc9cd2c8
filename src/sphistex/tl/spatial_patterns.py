"""Spatial patterns of genes before and after super-resolution, and of a null in which the image says nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.tl._bins import Places, bins_of, measured_places
from sphistex.tl._expression import PER_SPOT, Expression
from sphistex.tl._genes import choose_genes
from sphistex.tl._pattern_statistics import NEIGHBOURS, autocorrelation, fine_structure, sepal
from sphistex.tl._results import find_result, section_of
from sphistex.tl._shuffled import check_repeatable, shuffled_result
from sphistex.tl.fit import check_seed

Statistic = Literal["moran", "geary", "sepal", "fine"]
# Bins as large as the distance between spots are no smaller than this: those of Visium HD are many counts and few bins.
_SMALLEST_BIN_UM = 64.0
# Side of the bins in which structure finer than the spots is looked for, and how much more of it than in the null is a
# finding: an image in tiles, which shows nothing, brought less to all but one of 144 genes, see docs/annotation.md.
_FINE_BIN_UM, _BEYOND = 16.0, 1.5
# "fine", of counts that are scaled by the average total and not by that of each bin.
_IN_COUNTS = "fine of counts"
# Numbers in memory at once.
_NUMBERS = 8_000_000


def spatial_patterns(
    sdata: SpatialData,
    *,
    table_key: str = "superres",
    genes: int | Sequence[str] | Literal["all"] | None = 50,
    statistics: Statistic | Sequence[Statistic] = ("moran", "geary", "sepal", "fine"),
    bin_um: float | None = None,
    null: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    """Compare how patterned genes are in the spots, in the superpixels, and in superpixels without an image.

    Moran's I, Geary's C and sepal are those of squidpy, between neighbours on the lattice of the spots and, after
    super-resolution, on square bins of superpixels about as far apart. Counts of both are scaled to 10,000, over all
    genes of the result, and logged.

    A smooth map is patterned, whatever it shows. Therefore the null: the model is fitted again, with the same
    parameters and seed, to the same spots, with the features of superpixels shuffled among them, and its map is judged
    in the same bins. What this reaches is interpolation and smoothing of the spots, and by these three statistics it
    reaches more than the result does, as it is smoother.

    What the image brings is ``"fine"``: how much structure there is below the distance between spots, or below 64 µm
    where that is less. From the logged counts of bins of 16 µm their smoothing by a Gaussian is taken away, whose full
    width at half maximum is this distance; of what is left, Moran's I times the variance is the covariance of
    neighbours, and its root is the statistic: about by how much neighbours go up and down together, in units of the
    logarithm. A gene is ``beyond`` its null where it has 1.5 times as much of it, both in these scaled counts and in
    those that are scaled by the same total everywhere: a gene that only follows the density of cells stands out in the
    latter alone, and in the former alone one that only makes room for others.

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
        Which to compute. ``"sepal"`` takes longer than the others, on very large sections seconds for each gene.
    bin_um
        Side of the bins of all statistics but ``"fine"`` in µm, a multiple of a superpixel's; by default the distance
        between spots, at least 64 µm. At another scale ``after`` and ``null`` are other numbers, not to be compared
        with ``before``. Spots that are bins of Visium HD are pooled in the same bins.
    null
        Whether to make the null. It takes what the fit and the prediction took, and while it is made a file of the
        size of the feature map in the cache folder.
    seed
        Seed of the shuffling; by default that of the settings.

    Returns
    -------
    Table with one row per gene and statistic: ``gene``, ``statistic``, ``before`` (spots), ``after`` (superpixels in
    bins), ``null``, NaN without one, and ``beyond``, which only rows of ``"fine"`` can be. The more patterned a gene,
    the higher are all statistics but Geary's C, which is lower. Sepal is the time that diffusion takes to even a gene
    out, in units of the squared distance between places, and 500 where it takes longer; nothing flows over the border
    of the tissue. Of ``"fine"`` there is nothing ``before``, unless spots are bins of Visium HD.

    Raises
    ------
    KeyError
        If there is no such result or gene, or what it was made from is gone.
    ValueError
        If a result was made without spots, or, where there is to be a null, of another section's model; if the spots
        lie on no lattice and sepal is wanted; or an argument makes no sense; before any computing.

    Warns
    -----
    UserWarning
        If the model was not judged by spots that were left out while fitting: then its map is not held back by them,
        ``"fine"`` is large by chance, and no gene is ``beyond``.

    Notes
    -----
    The null is one draw, fitted to this section alone also where the result's model was fitted to several. ``beyond``
    says that the image tells where a gene is, finer than the spots, and errs on the side of caution; that the map is
    right it does not say.

    References
    ----------
    Andersson and Lundeberg, sepal: identifying transcript profiles with spatial patterns by diffusion-based modeling,
    Bioinformatics 2021. Squidpy: Palla et al., Nature Methods 2022.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> table = sx.tl.spatial_patterns(sdata, genes=5, statistics=["moran"])
    >>> list(table.columns)
    ['gene', 'statistic', 'before', 'after', 'null', 'beyond']
    """
    table, made = find_result(sdata, table_key)
    section = section_of(sdata, made, table_key)
    statistics = _checked_statistics(statistics)
    if "log1p" in table.uns:
        raise ValueError(f"table_key={table_key!r} holds logarithms: spatial_patterns takes the counts as predicted")
    names = list(table.var_names)
    chosen = choose_genes(section.table[:, names], genes, table_key)
    pitch_um, spots_um = float(made["pitch_um"]), max(section.pitch_um, _SMALLEST_BIN_UM)
    bins, factor = bins_of(table, pitch_um, pitch_um * round(spots_um / pitch_um) if bin_um is None else bin_um)
    fine, fine_factor = bins_of(table, pitch_um, _FINE_BIN_UM)
    spots = measured_places(sdata, made, section, bins, factor)
    # what is finer than the spots is not in them, unless they are bins of Visium HD
    fine_spots = None if section.outlines_px is None else measured_places(sdata, made, section, fine, fine_factor)
    if "sepal" in statistics and spots.kind not in NEIGHBOURS:
        raise ValueError("statistics: sepal needs spots on a hexagonal or square lattice, and these lie on none")
    seed = check_seed(seed)
    claims = "verdict" in table.var
    if null:
        check_repeatable(sdata, made, section, table, table_key)
        if "fine" in statistics and not claims:
            warnings.warn(
                f"table_key={table_key!r}: its model was not judged by spots that were left out (holdout=0, or too few "
                "spots), and reads what it likes into the image: no gene is said to be beyond its null",
                stacklevel=2,
            )

    def judged(counts: AnnData, places: Places, fine: Places | None) -> pd.Series:
        width = spots_um / _FINE_BIN_UM
        return _judged(counts, names, chosen, statistics, places=places, fine=fine, width=width)

    found = pd.DataFrame({"before": judged(section.table, spots, fine_spots), "after": judged(table, bins, fine)})
    found["null"] = np.nan
    if null:
        with shuffled_result(sdata, table, made, section, seed) as without_image:
            found["null"] = judged(without_image, bins, fine)
    more = found["after"] > _BEYOND * found["null"]
    found["beyond"] = False
    if "fine" in statistics:
        both = more.xs("fine", level="statistic") & more.xs(_IN_COUNTS, level="statistic")
        found.loc[[(gene, "fine") for gene in chosen], "beyond"] = claims & both[chosen].to_numpy()
        found = found.drop(index=_IN_COUNTS, level="statistic")
    return found.reset_index()


def _judged(
    table: AnnData,
    names: list[str],
    genes: list[str],
    statistics: list[Statistic],
    *,
    places: Places,
    fine: Places | None,
    width: float,
) -> pd.Series:
    """Each statistic of each gene, indexed by both; counts are scaled over all genes named."""
    totals = _totals(table, names)
    columns = [*statistics, _IN_COUNTS] if "fine" in statistics else statistics
    found = pd.DataFrame(np.nan, index=pd.Index(genes, name="gene"), columns=pd.Index(columns, name="statistic"))
    average = np.full_like(totals, totals.mean())
    at_once = max(1, _NUMBERS // len((fine or places).xy))
    for first in range(0, len(genes), at_once):
        part = genes[first : first + at_once]
        if set(statistics) - {"fine"}:
            values = _logged(table, places, part, totals)
        for statistic in statistics:
            if statistic == "sepal":
                found.loc[part, statistic] = sepal(places, values)
            elif statistic != "fine":
                found.loc[part, statistic] = autocorrelation(places, values, statistic)
            elif fine is not None:
                for name, scale in ((statistic, totals), (_IN_COUNTS, average)):
                    found.loc[part, name] = fine_structure(fine, _logged(table, fine, part, scale), width)
    return found.unstack().swaplevel()


def _totals(table: AnnData, names: list[str]) -> NDArray[np.float64]:
    """Counts (n_obs,) over some genes."""
    totals = np.zeros(table.n_obs)
    for rows, _, values in Expression(table, None).blocks(genes=table.var_names.get_indexer(names)):
        totals[rows] += values.sum(1, dtype=np.float64)
    if lost := int(np.count_nonzero(~np.isfinite(totals))):
        raise ValueError(f"{lost} of {len(totals)} spots or superpixels have counts that are NaN or infinite")
    return totals


def _logged(table: AnnData, places: Places, genes: list[str], totals: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log-normalised expression (n_places, n_genes) of some genes from counts and their totals (n_obs,)."""
    sums = np.zeros((len(places.xy), len(genes)))
    for rows, columns, values in Expression(table, None).blocks(genes=table.var_names.get_indexer(genes)):
        sums[:, columns] += places.pool[:, rows] @ values
    of_all = (places.pool @ totals)[:, None]
    return np.log1p(np.divide(PER_SPOT * sums, of_all, out=np.zeros_like(sums), where=of_all > 0)).astype(np.float32)


def _checked_statistics(statistics: Statistic | Sequence[Statistic]) -> list[Statistic]:
    several = isinstance(statistics, Iterable) and not isinstance(statistics, str)
    chosen: list[Any] = list(statistics) if several else [statistics]
    if not chosen or not set(chosen) <= set(get_args(Statistic)):
        raise ValueError(f"statistics={statistics!r} must be some of {list(get_args(Statistic))}")
    return list(dict.fromkeys(chosen))
