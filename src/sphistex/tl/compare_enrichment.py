"""Gene sets that regions are rich in before and after super-resolution, and in a null without the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.tl._expression import Expression
from sphistex.tl._extras import check_extra
from sphistex.tl._gene_sets import GeneSets, usable_gene_sets
from sphistex.tl._results import find_result, section_of, spot_of_each
from sphistex.tl._shuffled import NULL, check_repeatable, shuffled_result
from sphistex.tl._spots import grouped_spots
from sphistex.tl.enrich import best_markers, check_numbers, over_representation
from sphistex.tl.fit import check_seed

# Markers of a region: one in so many genes, within these limits.
_SHARE, _MARKERS = 10, (10, 100)


def compare_enrichment(
    sdata: SpatialData,
    *,
    gene_sets: GeneSets,
    groupby: str = "annotation",
    table_key: str = "superres",
    n_markers: int | None = None,
    max_q: float = 0.05,
    min_genes: int = 5,
    null: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    """Test which gene sets the markers of regions are rich in: of spots, of superpixels, and without the image.

    A spot belongs to the region of most of its superpixels. The null is that of :func:`spatial_patterns`: the same fit
    to features that are shuffled among the superpixels, judged in the same regions. What is found in it is owed to
    the spots and to the borders of the regions; a set counts as found only after super-resolution where neither the
    spots nor the null show it.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve` and what it was made from. It is not changed.
    gene_sets, max_q, min_genes
        As in :func:`enrich`.
    n_markers
        At most so many markers of a region; by default a tenth of the genes, but at least 10 and no more than 100. Of
        thousands of superpixels almost every gene that differs at all is significant.
    groupby
        Column of the result's ``obs`` with the regions, such as that of :func:`annotate`.
    table_key
        Name of the result.
    null
        Whether to make the null, which takes what the fit and the prediction took. Without one, all that the spots
        do not show counts as found only after.
    seed
        Seed of the shuffling; by default that of the settings.

    Returns
    -------
    Table with one row per region and set: ``group``, ``gene_set``; ``q_before``, ``q_after``, ``q_null``, each adjusted
    by Benjamini and Hochberg over the sets of a region; ``n_before``, ``n_after``, ``n_null``, how many of the markers
    are in the set; and ``only_after``. What is found only after stands first. Regions that are that of fewer than two
    spots have no ``q_before``.

    Raises
    ------
    ImportError
        If decoupler is not installed.
    KeyError, FileNotFoundError
        If there is no such result, column or file, or what the result was made from is gone.
    TypeError, ValueError
        If gene sets, regions or numbers cannot be used; before any computing.

    Notes
    -----
    q depends on how genes are ranked, not on how many superpixels there are; and regions that were made from the very
    expression that is tested differ in it by construction. Look at which sets are found, not at how small q is.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=900, n_genes=30)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> sx.tl.annotate(sdata, n_clusters=3)
    >>> genes = list(sdata.tables["superres"].var_names)
    >>> table = sx.tl.compare_enrichment(sdata, gene_sets={"first": genes[:10], "last": genes[-10:]}, null=False)
    >>> len(table)
    6
    """
    check_extra("decoupler", "sphistex.tl.compare_enrichment", extra="enrichment")
    table, made = find_result(sdata, table_key)
    section = section_of(sdata, made, table_key)
    groups = grouped_spots(table, table_key, groupby)
    if n_markers is None:
        n_markers = int(np.clip(table.n_vars // _SHARE, *_MARKERS))
    check_numbers(n_markers, max_q, min_genes)
    sets = usable_gene_sets(gene_sets, table.var, table_key, min_genes)
    seed = check_seed(seed)
    if null:
        check_repeatable(sdata, made, section, table, table_key)

    def tested(judged: AnnData, name: str, of: pd.Series) -> pd.DataFrame:
        markers = best_markers(Expression.of(judged, name), of, n_markers, max_q)
        found = over_representation(markers, sets, table.n_vars)
        return found.astype({"group": str}).set_index(["group", "gene_set"])[["q", "n_overlap"]]

    found = {"after": tested(table, table_key, groups)}
    spots = section.table[:, list(table.var_names)]
    of_spots = _groups_of_spots(groups, spot_of_each(sdata, section, table, made)[groups.index])
    if len(of_spots.cat.categories) > 1:
        found["before"] = tested(spots, section.table_key, of_spots)
    if null:
        with shuffled_result(sdata, table, made, section, seed) as without_image:
            found["null"] = tested(without_image, NULL, groups)
    return _joined(found, list(groups.cat.categories), max_q)


def _groups_of_spots(groups: pd.Series, spot: NDArray[np.intp]) -> pd.Series:
    """The group of most of each spot's superpixels, by the place of the spot; groups of a single spot are left out."""
    inside = spot >= 0
    counts = pd.crosstab(spot[inside], groups[inside].to_numpy())
    named = counts.idxmax(axis=1).astype(str)
    size = named.value_counts()
    several = [name for name in groups.cat.categories if size.get(name, 0) > 1]
    return named[named.isin(several)].astype(pd.CategoricalDtype(several))


def _joined(found: dict[str, pd.DataFrame], groups: list[str], max_q: float) -> pd.DataFrame:
    """All tests side by side, what is found only after first."""
    columns: dict[str, Any] = {}
    for value, name in (("q", "q"), ("n_overlap", "n")):
        for when in ("before", "after", "null"):
            column = found[when][value] if when in found else pd.Series(dtype=float)
            columns[f"{name}_{when}"] = column.reindex(found["after"].index)
    joined = pd.DataFrame(columns)
    shown = joined[["q_before", "q_after", "q_null"]] <= max_q  # NaN is nothing that was found
    joined["only_after"] = shown["q_after"] & ~shown["q_before"] & ~shown["q_null"]
    joined = joined.reset_index()
    order = np.lexsort([joined["q_after"], joined["group"].map(groups.index), ~joined["only_after"]])
    return joined.iloc[order].reset_index(drop=True).astype({"group": pd.CategoricalDtype(groups)})
