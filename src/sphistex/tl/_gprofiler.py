"""Over-representation of markers in the gene sets of the web service g:Profiler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_PREFIX = "gprofiler:"


def organism_of(gene_sets: Any) -> str | None:
    """The organism where g:Profiler is asked for, as in ``"gprofiler:hsapiens"``; None where it is not.

    Examples
    --------
    >>> organism_of("gprofiler:mmusculus")
    'mmusculus'
    """
    if not isinstance(gene_sets, str) or not gene_sets.startswith(_PREFIX):
        return None
    return gene_sets.removeprefix(_PREFIX)


def over_represented_online(markers: pd.DataFrame, organism: str, genes: list[str], min_genes: int) -> pd.DataFrame:
    """What g:Profiler says of each group's markers against the genes of the table, with the columns of ``enrich``.

    Raises
    ------
    ConnectionError
        If the service does not answer, or refuses, such as an organism that it does not know.
    """
    from gprofiler import GProfiler
    from requests.exceptions import RequestException

    service = GProfiler(user_agent="sphistex", return_dataframe=True)
    groups = markers["group"].cat.categories
    own = {str(group): list(markers.loc[markers["group"] == group, "gene"]) for group in groups}
    try:
        found = service.profile(
            {group: names for group, names in own.items() if names},
            organism=organism,
            background=genes,
            all_results=True,
            no_evidences=False,
            significance_threshold_method="fdr",
        )
    except (RequestException, AssertionError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConnectionError(
            f"g:Profiler gave no result for organism {organism!r} ({reason}): check the name and the network, or pass "
            "a GMT file as gene_sets"
        ) from error
    found = found[found["term_size"] >= min_genes]
    table = pd.DataFrame(
        {
            "group": found["query"],
            # several sources have sets of the same name
            "gene_set": (found["source"] + " " + found["name"]).str.replace("/", "_"),
            "n_markers": found["query_size"],
            "n_genes": found["term_size"],
            "n_overlap": found["intersection_size"],
            "genes": found["intersections"].map(", ".join),
            "log_odds_ratio": _log_odds_ratio(found),
            "p": np.nan,
            "q": found["p_value"],
        }
    )
    return table.sort_values(["group", "q", "gene_set"], ignore_index=True).astype({"group": markers["group"].dtype})


def _log_odds_ratio(found: pd.DataFrame) -> pd.Series:
    """Of being in a set, of markers and of the other genes that the source knows; half a gene is added to each."""
    both = found["intersection_size"]
    markers, others = found["query_size"] - both, found["term_size"] - both
    neither = found["effective_domain_size"] - both - markers - others
    return np.log((both + 0.5) * (neither.clip(lower=0) + 0.5) / ((markers + 0.5) * (others + 0.5)))
