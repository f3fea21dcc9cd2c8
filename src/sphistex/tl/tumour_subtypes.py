"""Tumours of several parts: clusters of tumour spots by expression and by copy number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.tl._annotate import annotate, check_own
from sphistex.tl._clusters import best_clusters
from sphistex.tl._components import components, moments
from sphistex.tl._copy_number import copy_number, placed_genes, shuffled
from sphistex.tl._expression import Expression, find_table
from sphistex.tl._extras import check_extra
from sphistex.tl._gene_names import why_unmatched
from sphistex.tl._gene_positions import read_gene_positions
from sphistex.tl._spots import Choice, as_list, chosen_spots
from sphistex.tl.fit import check_seed

By = Literal["expression", "copy_number", "both"]
# Components of expression, and of copy number, in which spots are compared.
_MOST = 10
# The most variable genes of the tumour; the others are mostly noise.
_N_GENES = 2000
_FEWEST_REFERENCE = 10
# Spots of which profiles are read at once.
_AT_ONCE = 4096


def tumour_subtypes(
    sdata: SpatialData,
    *,
    table_key: str,
    tumour: Choice,
    gene_positions: str | Path | None = None,
    reference: Choice | None = None,
    by: By | None = None,
    n_subtypes: int | Sequence[int] = (2, 3, 4, 5, 6),
    window_size: int = 100,
    step: int = 10,
    key_added: str = "subtype",
    cnv_key_added: str = "cnv",
    seed: int | None = None,
) -> None:
    """Cluster the spots of a tumour by their expression and, where gene positions are given, by their copy number.

    Copy-number profiles are those of infercnvpy (extra ``cnv``): what each spot expresses above the mean of the
    reference spots, averaged over neighbouring genes of a chromosome. Of expression and of profiles those principal
    components are taken, at most ten, that vary more than chance would have it (parallel analysis): than those of
    expression with random signs, and those of the profiles that the same genes would give in another order. Each set is
    divided by the spread of its first one, so that neither outweighs the other, and spots are clustered by k-means.

    Parameters
    ----------
    sdata
        SpatialData with a table of spots, measured or predicted. Its ``X`` may hold counts, or counts that were
        normalised to 10,000 per spot and logged.
    table_key
        Name of the table.
    tumour
        Which spots are tumour: a boolean column of ``obs``, or a column and one or several of its values, such as
        ``("predicted_region", "tumour")``.
    gene_positions
        File that says where genes lie: GTF, or a table (``.tsv``, ``.csv``) with the columns ``gene``, ``chromosome``,
        ``start`` and ``end``; compressed or not. Without it there is no copy number.
    reference
        Spots that are taken to be diploid, chosen as ``tumour``; by default all that are not tumour.
    by
        What spots are clustered by: ``"expression"``, ``"copy_number"`` or ``"both"``; by default all there is.
    n_subtypes
        Number of clusters, or several to choose from: that with the highest mean silhouette is taken, of those whose
        clusters all have 5 % of the tumour or more.
    window_size, step
        Genes that a profile averages, and by how many genes its windows lie apart.
    key_added
        Column of ``obs`` to add. What an earlier call added is replaced.
    cnv_key_added
        Name of the profiles, as infercnvpy names them.
    seed
        Seed of the clustering; by default that of the settings.

    Returns
    -------
    Nothing. To the table are added:

    - ``obs[key_added]``: ``"1"`` for the largest cluster, and so on; NaN outside of the tumour;
    - ``uns[key_added]``: ``params``; ``n_components`` of expression and copy number; ``silhouette``, a table: the
      mean silhouette of each number of clusters and the size of its smallest one; and ``silhouette_by_chance``: the
      highest one in 20 samples of spots without subtypes (a normal distribution of the same spread);
    - ``obsm["X_cnv"]`` (n_spots, n_windows): profiles of all spots, in units of ln, 0 where there is no gain or loss;
      and ``uns["cnv"]["chr_pos"]``: the first window of each chromosome.

    Raises
    ------
    ImportError
        If gene positions are given and infercnvpy is not installed.
    KeyError
        If there is no such table or column.
    ValueError
        If an argument makes no sense, there are too few spots, gene positions cannot be read, or too few genes have
        one; before any computing.

    Warns
    -----
    UserWarning
        If spots differ by no more than chance (all are of subtype ``"1"`` then), or clusters are no clearer than those
        of spots without subtypes.

    Notes
    -----
    Chromosomes X, Y and M are left out, and those with fewer than ten genes of the table. Of a table of a few hundred
    genes a profile is little more than a mean per chromosome.

    Measured spots with few counts are alike for that reason alone: look whether subtypes differ in their counts.

    infercnvpy works in a process of its own: where processes are spawned (macOS, Windows), a script needs
    ``if __name__ == "__main__":``.

    References
    ----------
    Profiles: Patel et al., Single-cell RNA-seq highlights intratumoral heterogeneity in primary glioblastoma, Science
    2014, as in infercnvpy. Components: Hong, Sheng and Dobriban, Selecting the number of components in
    PCA via random signflips, 2020. Weights of the two sets: Escofier and Pagès, Multiple factor analysis, Computational
    Statistics & Data Analysis 1994. Spots without subtypes: Liu et al., Statistical significance of clustering, Journal
    of the American Statistical Association 2008.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=1200, n_genes=30)
    >>> table = sdata.tables["counts"]
    >>> table.obs["is_tumour"] = table.obs["array_col"] > 10  # a pathologist's annotation, or predicted regions
    >>> sx.tl.tumour_subtypes(sdata, table_key="counts", tumour="is_tumour", n_subtypes=2)
    >>> list(table.obs["subtype"].cat.categories)
    ['1', '2']
    """
    table = find_table(sdata, table_key)
    of_tumour = chosen_spots(table, table_key, "tumour", tumour)
    numbers = _checked_numbers(n_subtypes, int(of_tumour.sum()), tumour)
    by = _checked_by(by, gene_positions)
    seed = check_seed(seed)
    check_own(table, table_key, key_added, "tumour_subtypes", there=key_added in table.obs)
    if reference is not None and gene_positions is None:
        raise ValueError(f"reference={reference!r} is what copy number is read against, and needs gene_positions=")
    placed, diploid = None, ~of_tumour
    if gene_positions is not None:
        check_extra("infercnvpy", "gene_positions=", extra="cnv")
        profiles_there = f"X_{cnv_key_added}" in table.obsm
        check_own(table, table_key, cnv_key_added, "tumour_subtypes", there=profiles_there)
        if reference is not None:
            diploid = chosen_spots(table, table_key, "reference", reference)
        _check_windows(window_size, step)
        _check_reference(diploid, of_tumour)
        placed = _placed(table, gene_positions)
    expression = Expression.of(table, table_key)

    rows, rng = np.flatnonzero(of_tumour), np.random.default_rng(seed)
    added: dict[str, Any] = {}
    sets: dict[str, NDArray[np.float64]] = {}
    if by != "copy_number":
        sets["expression"] = _of_expression(expression, rows, seed)
    if placed is not None:
        profiled = partial(
            copy_number, expression, reference=np.flatnonzero(diploid), window_size=window_size, step=step
        )
        profiles, starts = profiled(placed)
        added = {"profiles": profiles, "starts": starts}
        if by != "expression":
            elsewhere = profiled(shuffled(placed, rng), rows=rows)[0]
            sets["copy_number"] = components(partial(_parts, profiles[rows]), partial(_parts, elsewhere), _MOST)
    points = np.hstack(list(sets.values()))
    clusters, judged = best_clusters(points, numbers, seed, rng)
    params = {
        "table_key": table_key,
        "tumour": as_list(tumour),
        "by": by,
        "n_subtypes": numbers,
        "seed": seed,
    }
    if placed is not None:
        params |= {"gene_positions": str(gene_positions), "window_size": window_size, "step": step}
        params |= {} if reference is None else {"reference": as_list(reference)}
        params["n_placed_genes"] = int(placed["chromosome"].notna().sum())
    subtype = np.full(table.n_obs, -1)
    subtype[rows] = clusters
    n_components = {name: found.shape[1] for name, found in sets.items()}
    record = {"made_by": "tumour_subtypes", "params": params, "n_components": n_components, **judged}
    add = partial(_add, subtype=subtype, record=record, key_added=key_added, cnv_key_added=cnv_key_added, **added)
    annotate(sdata, table_key, add)


def _checked_numbers(n_subtypes: int | Sequence[int], n_spots: int, tumour: Choice) -> list[int]:
    numbers = list(n_subtypes) if isinstance(n_subtypes, Iterable) else [n_subtypes]
    if not numbers or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 2 for n in numbers):
        raise ValueError(f"n_subtypes={n_subtypes!r}: give a number of clusters from 2 on, or several to choose from")
    if n_spots <= max(numbers):
        raise ValueError(
            f"tumour={tumour!r} are {n_spots} spots, too few for {max(numbers)} clusters: at least {max(numbers) + 1}"
        )
    return sorted({int(n) for n in numbers})


def _checked_by(by: By | None, gene_positions: str | Path | None) -> By:
    if by is None:
        return "expression" if gene_positions is None else "both"
    if by not in get_args(By):
        raise ValueError(f'by={by!r} must be "expression", "copy_number" or "both"')
    if gene_positions is None and by != "expression":
        raise ValueError(f"by={by!r} needs gene_positions=, a file that says where genes lie")
    return by


def _check_windows(window_size: int, step: int) -> None:
    for name, value in (("window_size", window_size), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of genes of at least 1")


def _check_reference(diploid: NDArray[np.bool_], of_tumour: NDArray[np.bool_]) -> None:
    if shared := int((diploid & of_tumour).sum()):
        raise ValueError(f"reference= and tumour= have {shared} spots in common: a spot can only be one of them")
    if (found := int(diploid.sum())) < _FEWEST_REFERENCE:
        raise ValueError(
            f"reference: {found} spots are not tumour, and copy number is read against at least {_FEWEST_REFERENCE}; "
            "choose others with reference=, or leave out gene_positions="
        )


def _placed(table: AnnData, gene_positions: str | Path) -> pd.DataFrame:
    positions = read_gene_positions(gene_positions)
    if not (known := int(table.var_names.isin(positions.index).sum())):
        reason = why_unmatched(table.var, positions.index, "the file has")
        raise ValueError(f"gene_positions={str(gene_positions)!r} places none of the {table.n_vars} genes. {reason}")
    placed = placed_genes(table.var, positions)
    if not placed["chromosome"].notna().any():
        raise ValueError(
            f"gene_positions={str(gene_positions)!r} places {known} of the {table.n_vars} genes, and no autosome has "
            "ten of them: too few to read copy number from"
        )
    return placed


def _of_expression(expression: Expression, rows: NDArray[np.intp], seed: int) -> NDArray[np.float64]:
    """Components of the most variable genes."""

    def read(genes: NDArray[np.intp] | slice) -> Iterator[NDArray[np.float32]]:
        return (values[:, genes] for _, values in expression.by_rows(rows))

    def by_chance() -> Iterator[NDArray[np.float64]]:
        # random signs leave spots and genes as variable as they are, and no genes that go together
        rng = np.random.default_rng(seed)
        return ((values - mean[chosen]) * rng.choice([-1.0, 1.0], values.shape) for values in read(chosen))

    mean, variance = moments(partial(read, slice(None)))
    chosen = np.sort(np.argsort(-variance, kind="stable")[:_N_GENES])
    return components(partial(read, chosen), by_chance, _MOST)


def _parts(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (values[first : first + _AT_ONCE] for first in range(0, len(values), _AT_ONCE))


def _add(
    table: AnnData,
    *,
    subtype: NDArray[np.intp],
    record: dict[str, Any],
    key_added: str,
    cnv_key_added: str,
    profiles: NDArray[np.float32] | None = None,
    starts: dict[str, int] | None = None,
) -> None:
    names = [str(number) for number in range(1, subtype.max() + 2)]
    table.obs[key_added] = pd.Categorical.from_codes(subtype, categories=names)
    table.uns[key_added] = record
    if profiles is not None:
        table.obsm[f"X_{cnv_key_added}"] = profiles
        table.uns[cnv_key_added] = {"made_by": "tumour_subtypes", "chr_pos": starts}
