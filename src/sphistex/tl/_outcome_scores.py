"""How good out-of-fold predictions of an outcome are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import CensoredData, logrank

from sphistex.metrics.concordance import concordance
from sphistex.nn.outcome import Outcome

_BOOTSTRAPS = 1000
_INTERVAL = (2.5, 97.5)


def score(outcome: Outcome, risk: NDArray[np.float64]) -> float:
    """Concordance index of a risk, or the area under the ROC curve; NaN where there is nothing to compare."""
    # responders come before the others: of every such pair the first should have the higher score
    time = ~outcome.happened if outcome.time is None else outcome.time
    return concordance(risk, time, outcome.happened)


def scores_of(
    outcome: Outcome, risks: dict[str, NDArray[np.float64]], shuffled: dict[str, NDArray[np.float64]], seed: int
) -> pd.DataFrame:
    """One row for each model: its score with an interval, and what chance gives.

    Parameters
    ----------
    risks
        Out-of-fold predictions of each model (n_patients,).
    shuffled
        Scores of each model where outcomes were shuffled (n_permutations,).
    """
    rng = np.random.default_rng([seed, 1])
    draws = rng.integers(len(outcome), size=(_BOOTSTRAPS, len(outcome)))
    rows = []
    for model, risk in risks.items():
        found, chance = score(outcome, risk), shuffled[model]
        low, high = np.nanpercentile([score(outcome.take(drawn), risk[drawn]) for drawn in draws], _INTERVAL)
        row: dict[str, Any] = {
            "model": model,
            "metric": "concordance" if outcome.kind == "survival" else "auc",
            "score": found,
            "low": low,
            "high": high,
            "shuffled": chance.mean() if len(chance) else np.nan,
            "shuffled_high": np.percentile(chance, _INTERVAL[1]) if len(chance) else np.nan,
            "p_permutation": (1 + np.sum(chance >= found)) / (1 + len(chance)) if len(chance) else np.nan,
        }
        if outcome.kind == "survival":
            row["p_logrank"] = logrank_p(outcome.time, outcome.event, above_median(risk))
        rows.append(row | {"n_patients": len(outcome), "n_events": int(outcome.happened.sum())})
    return pd.DataFrame(rows).set_index("model")


def above_median(risk: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Half of the patients, those of the higher risk."""
    return risk > np.median(risk)


def logrank_p(time: Any, event: Any, group: NDArray[np.bool_]) -> float:
    """P value of the log-rank test between two groups; NaN where one is empty."""
    if group.all() or not group.any():
        return float("nan")
    time, censored = np.asarray(time, dtype=float), ~np.asarray(event, dtype=bool)
    sides = [CensoredData.right_censored(time[side], censored[side]) for side in (group, ~group)]
    return float(logrank(*sides).pvalue)
