"""Gene sets: how active each is in every spot, and which are over-represented among the markers of groups."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex._checks import is_number
from sphistex.settings import settings
from sphistex.tl._annotate import annotate, check_own
from sphistex.tl._expression import Expression, find_table
from sphistex.tl._extras import check_extra
from sphistex.tl._gene_sets import GeneSets, usable_gene_sets
from sphistex.tl._gprofiler import organism_of, over_represented_online
from sphistex.tl._spots import grouped_spots
from sphistex.tl.markers import rank_genes


def enrich(
    sdata: SpatialData,
    *,
    table_key: str,
    gene_sets: GeneSets,
    groupby: str | None = None,
    n_markers: int = 100,
    max_q: float = 0.05,
    min_genes: int = 5,
    key_added: str = "enrichment",
) -> None:
    """Score gene sets in every spot and, where groups are named, test which the markers of each group are rich in.

    Both are computed by decoupler (extra ``enrichment``). The score of a set is the t value of a linear model of the
    spot's expression on whether a gene belongs to the set (``ulm``): above 0 where its genes are expressed more than
    the table's others. The markers of a group are its genes with the highest scores of :func:`markers`, and their
    overlap with a set is compared by Fisher's exact test with that of as many genes drawn from the whole table.

    Parameters
    ----------
    sdata
        SpatialData with the table.
    table_key
        Name of the table, measured, predicted or of superpixels; of counts or of their logarithms.
    gene_sets
        GMT file, genes of several sets by name, or genes of one set. Names of genes are those of the table. Or
        ``"gprofiler:<organism>"``, such as ``"gprofiler:hsapiens"``: the markers of the groups, and the names of all
        genes of the table, are sent to the web service g:Profiler (extra ``gprofiler``), which compares them with GO,
        Reactome, WikiPathways and more. Spots get no scores then.
    groupby
        Column of ``obs`` with the groups; spots without a value are left out of the test.
    n_markers, max_q
        At most so many markers of a group, all with a higher expression than elsewhere and an adjusted p of no more
        than ``max_q``.
    min_genes
        Sets with fewer genes in the table are left out.
    key_added
        Name of what is added. What an earlier call added is replaced.

    Returns
    -------
    Nothing. To the table are added:

    - ``obsm[key_added]``: scores, a DataFrame with one column per set; NaN in spots all of whose genes are 0;
    - ``uns[key_added]``: ``params`` and, where groups are named, ``markers`` (see :func:`markers`) and
      ``over_representation``, one row per group and set: ``group``, ``gene_set``, ``n_markers``, ``n_genes`` (of the
      set in the table), ``n_overlap``, ``genes`` (the overlap), ``log_odds_ratio``, ``p``, and ``q``, adjusted by
      Benjamini and Hochberg over the sets of a group. g:Profiler says q and no p.

    Raises
    ------
    ImportError
        If decoupler, or the client of g:Profiler, is not installed.
    ConnectionError
        If g:Profiler does not answer, or not with a result.
    KeyError, FileNotFoundError
        If there is no such table, column or file.
    TypeError, ValueError
        If gene sets cannot be read or none has enough genes in the table, groups cannot be compared, or an argument
        makes no sense; before any computing.

    Warns
    -----
    UserWarning
        If gene sets are left out.

    References
    ----------
    Badia-i-Mompel et al., decoupleR: ensemble of computational methods to infer biological activities from omics data,
    Bioinformatics Advances 2022. Kolberg et al., g:Profiler, Nucleic Acids Research 2023.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=1200, n_genes=60)
    >>> genes = sdata.tables["counts"].var
    >>> sets = {kind: list(genes.index[genes["kind"] == kind]) for kind in ("marker", "gradient")}
    >>> sx.tl.enrich(sdata, table_key="counts", gene_sets=sets)
    >>> list(sdata.tables["counts"].obsm["enrichment"].columns)
    ['gradient', 'marker']
    """
    organism = organism_of(gene_sets)
    if organism is None:
        check_extra("decoupler", "sphistex.tl.enrich", extra="enrichment")
    else:
        check_extra("gprofiler", f"gene_sets={gene_sets!r}", extra="gprofiler")
    table = find_table(sdata, table_key)
    groups = None if groupby is None else grouped_spots(table, table_key, groupby)
    check_numbers(n_markers, max_q, min_genes)
    check_own(table, table_key, key_added, "enrich", there=key_added in table.obsm)
    record: dict[str, Any] = {
        "made_by": "enrich",
        "params": {"table_key": table_key, "n_markers": n_markers, "max_q": max_q, "min_genes": min_genes},
    }
    if groups is not None:
        record["params"]["groupby"] = groupby
    if organism is not None:
        if groups is None:
            raise ValueError(f"gene_sets={gene_sets!r} tests the markers of groups: pass groupby=, a column of obs")
        record["params"]["gene_sets"] = str(gene_sets)
        best = best_markers(Expression.of(table, table_key), groups, n_markers, max_q)
        asked = over_represented_online(best, organism, list(table.var_names), min_genes)
        record |= {"markers": best, "over_representation": asked}
        annotate(sdata, table_key, partial(_add, scores=None, record=record, key_added=key_added))
        return
    sets = usable_gene_sets(gene_sets, table.var, table_key, min_genes)
    expression = Expression.of(table, table_key)
    scores = _scores(expression, _as_net(sets))
    if groups is not None:
        best = best_markers(expression, groups, n_markers, max_q)
        record |= {"markers": best, "over_representation": over_representation(best, sets, table.n_vars)}
    annotate(sdata, table_key, partial(_add, scores=scores, record=record, key_added=key_added))


def check_numbers(n_markers: int, max_q: float, min_genes: int) -> None:
    """Raise a ValueError for numbers that make no sense."""
    for name, value, least in (("n_markers", n_markers, 1), ("min_genes", min_genes, 2)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
    if not (is_number(max_q) and 0 < max_q <= 1):
        raise ValueError(f"max_q={max_q!r} must lie between 0 and 1")


def best_markers(expression: Expression, groups: pd.Series, n_markers: int, max_q: float) -> pd.DataFrame:
    """At most so many genes of each group that are expressed more in it than elsewhere, the best first."""
    ranked = rank_genes(expression, groups)
    higher = ranked[(ranked["q"] <= max_q) & (ranked["score"] > 0)]
    return higher.groupby("group", observed=True).head(n_markers).reset_index(drop=True)


def _as_net(sets: dict[str, list[str]]) -> pd.DataFrame:
    """Gene sets as decoupler takes them."""
    net = pd.DataFrame([(name, gene, 1.0) for name, genes in sets.items() for gene in genes])
    return net.set_axis(["source", "target", "weight"], axis=1)


def _scores(expression: Expression, net: pd.DataFrame) -> pd.DataFrame:
    """Scores (n_obs, n_sets) of all spots; NaN where a spot's genes do not differ."""
    import decoupler as dc

    table, names = expression.table, sorted(net["source"].unique())
    scores = np.full((table.n_obs, len(names)), np.nan, dtype=np.float32)
    with tqdm(total=table.n_obs, desc="gene sets", unit="spot", disable=not settings.progress) as bar:
        for rows, values in expression.by_rows():
            fitted = np.ptp(values, axis=1) > 0
            if fitted.any():
                # empty=False: genes that no spot of this part expresses count as in all other parts
                part, _ = dc.mt.ulm(pd.DataFrame(values[fitted], columns=table.var_names), net, tmin=2, empty=False)
                scores[rows[fitted]] = part[names]
            bar.update(len(rows))
    return pd.DataFrame(scores, index=table.obs_names, columns=names)


def over_representation(markers: pd.DataFrame, sets: dict[str, list[str]], n_genes: int) -> pd.DataFrame:
    """Test of each group's markers, one row per group and set, the most significant sets of a group first.

    Sets are compared with all ``n_genes`` of the table.
    """
    import decoupler as dc

    net, found = _as_net(sets), []
    for group in markers["group"].cat.categories:
        own = set(markers.loc[markers["group"] == group, "gene"])
        tested = dc.mt.query_set(own, net, n_bg=n_genes, tmin=2)
        overlap = [[gene for gene in sets[name] if gene in own] for name in tested["source"]]
        found.append(
            pd.DataFrame(
                {
                    "group": group,
                    "gene_set": tested["source"],
                    "n_markers": len(own),
                    "n_genes": [len(sets[name]) for name in tested["source"]],
                    "n_overlap": [len(genes) for genes in overlap],
                    "genes": [", ".join(genes) for genes in overlap],
                    "log_odds_ratio": tested["stat"],
                    "p": tested["pval"],
                    "q": tested["padj"],
                }
            )
        )
    joined = pd.concat(found, ignore_index=True)
    return joined.astype({"group": markers["group"].dtype})


def _add(table: AnnData, *, scores: pd.DataFrame | None, record: dict[str, Any], key_added: str) -> None:
    table.obsm.pop(key_added, None)
    if scores is not None:
        table.obsm[key_added] = scores
    table.uns[key_added] = record
