"""What a benchmark found, as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from sphistex.bench.scores import CEILING, TISSUE

OURS, BASELINE = "sphistex", "linear"
# The scale (µm) at which one number has to stand for a map, where maps are scored at several.
MAIN_UM = 16.0
_COMPARED_UM = (16.0, 32.0)
# A gene counts as worse than the baseline if its r is lower by more than this, and it has a pattern to be found.
_WORSE, _PATTERNED = 0.02, 0.3
_RESAMPLES = 2000
_PACKAGES = ("sphistex", "numpy", "scipy", "scikit-learn", "torch", "spatialdata")


@dataclass(frozen=True)
class Made:
    """How a benchmark was made; ``facts`` has a row for every fit."""

    facts: pd.DataFrame
    encoder: str
    seed: int
    device: str


def write(scores: pd.DataFrame, costs: pd.DataFrame, made: Made) -> str:
    """The whole report.

    Parameters
    ----------
    scores, costs
        Tidy tables, see :func:`sphistex.bench.run`; costs have ``dataset``, ``protocol``, ``method``, ``seconds``,
        ``peak_gib`` and ``cut_short``.
    made
        How they were made.
    """
    parts = [
        "# Benchmark",
        _as_markdown(made.facts),
        "Figures are means over genes. r is Pearson's correlation with what was measured, after summing over squares "
        "of the given width. The noise ceiling is the r that the truth's own noise allows. (a): spots made from the "
        "counts that are scored against; (b): the same maps outside every spot; (c): spots from one half of the "
        "counts, scored against the other; held-out: at spots that no method has seen.",
        *_cut_short(costs),
    ]
    for (dataset, protocol, area), table in panels(scores):
        parts += [f"## {dataset}, protocol {protocol}, {area}", _by_scale(table)]
        if OURS in set(table.method):
            parts += [f"{OURS} − other: mean difference of r (95 % of resamplings of the genes)"]
            parts += [_differences(table, made.seed)]
        if {"rmse", "ssim", "spot_error"} & set(table.statistic):
            parts += [
                "RMSE and SSIM as published (each map scaled by its own extremes), and how far superpixels are from "
                "adding up to their spots",
                _others(table),
            ]
        if protocol == "c" and area == TISSUE and BASELINE in set(table.method):
            parts += [_worse(table)]
    parts += [
        "## Costs",
        "Peak memory is that of the whole process, features included.",
        _costs(costs),
        "## How it was made",
        *_how(made),
    ]
    return "\n\n".join(parts) + "\n"


def panels(scores: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """The scores of each section, protocol and area, in the order in which they were made."""
    yield from scores.groupby(["dataset", "protocol", "area"], sort=False)  # type: ignore[misc]


def by_gene(table: pd.DataFrame, statistic: str, scale_um: float) -> pd.DataFrame:
    """One statistic at one scale, (n_genes, n_methods), methods in their order.

    Genes whose truth is constant have none, and are left out.
    """
    part = table[(table.statistic == statistic) & (table.scale_um == scale_um)]
    return part.pivot(index="gene", columns="method", values="value")[list(part.method.unique())].dropna()


def main_scale(table: pd.DataFrame) -> float:
    """The scale that pictures show: 16 µm, or the only one."""
    scales = table.scale_um[table.statistic == "pearson"].unique()
    return MAIN_UM if MAIN_UM in scales else float(scales[0])


def interval(values: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Where 95 % of the means lie when the genes are drawn again with replacement.

    Parameters
    ----------
    values
        One number per gene, such as the difference between two methods.
    seed
        Seed of the resampling.

    Examples
    --------
    >>> low, high = interval([0.1, 0.2, 0.3, 0.2])
    >>> 0.1 <= low < 0.2 < high <= 0.3
    True
    """
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _cut_short(costs: pd.DataFrame) -> list[str]:
    """Which methods were only begun, as their figures are not those of the published ones."""
    begun = costs[costs.cut_short != ""].drop_duplicates("method")
    if begun.empty:
        return []
    lines = [f"- {method}: {cut}" for method, cut in zip(begun.method, begun.cut_short, strict=True)]
    title = "On a CPU these are only begun, so that their figures are not those of the published methods:"
    return [title, "\n".join(lines)]


# ----------------------------------------------------------------------------------------------- tables


def _by_scale(table: pd.DataFrame) -> str:
    """Mean r of the methods at every scale, the ceiling last, and what share of it is reached."""
    rows = {}
    for statistic, letter in (("pearson", "r"), ("spearman", "ρ")):
        for scale in np.sort(table.scale_um[table.statistic == statistic].unique()):
            rows[f"{letter}, {scale:g} µm"] = by_gene(table, statistic, scale).mean()
    wide = pd.DataFrame(rows)
    wide = wide.loc[_ordered(table)].map(lambda value: "" if np.isnan(value) else f"{value:.3f}")
    if CEILING in wide.index:
        mean = by_gene(table, "pearson", main_scale(table)).mean()
        wide[f"share of the ceiling, {main_scale(table):g} µm"] = (mean / mean[CEILING]).map("{:.0%}".format)
    return _as_markdown(wide.reset_index(names="method"))


def _ordered(table: pd.DataFrame) -> list[str]:
    methods = [name for name in table.method.unique() if name != CEILING]
    return [*methods, CEILING] if CEILING in set(table.method) else methods


def _differences(table: pd.DataFrame, seed: int) -> str:
    scales = [scale for scale in _COMPARED_UM if scale in set(table.scale_um[table.statistic == "pearson"])]
    columns = {}
    for scale in scales or [main_scale(table)]:
        r = by_gene(table, "pearson", scale)
        cells = {}
        for other in r.columns.drop([OURS, CEILING], errors="ignore"):
            difference = r[OURS] - r[other]
            low, high = interval(difference, seed=seed)
            cells[other] = f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        columns[f"{scale:g} µm"] = cells
    return _as_markdown(pd.DataFrame(columns).reset_index(names="other"))


def _others(table: pd.DataFrame) -> str:
    """RMSE, SSIM and the error of the spots' sums."""
    part = table[table.statistic.isin(["rmse", "ssim", "spot_error"])]
    mean = part.groupby(["method", "statistic"], sort=False).value.mean().unstack()
    return _as_markdown(mean.round(4).reset_index())


def _worse(table: pd.DataFrame) -> str:
    """Of the genes with a pattern, how many a method makes worse than the baseline."""
    scale = max(scale for scale in (*_COMPARED_UM, main_scale(table)) if scale in set(table.scale_um))
    r = by_gene(table, "pearson", scale)
    if CEILING in r:
        r = r[r[CEILING] > _PATTERNED].drop(columns=CEILING)
    counts = (r.sub(r[BASELINE], axis=0) < -_WORSE).sum().drop(BASELINE)
    title = f"Genes worse than {BASELINE} by more than {_WORSE} at {scale:g} µm, of {len(r)} whose ceiling is above "
    return f"{title}{_PATTERNED}\n\n" + _as_markdown(counts.rename_axis("method").reset_index(name="genes"))


def _costs(costs: pd.DataFrame) -> str:
    shown = costs.drop(columns="cut_short").assign(
        seconds=costs.seconds.map("{:.1f}".format),
        peak_gib=costs.peak_gib.map("{:.2f}".format),
    )
    return _as_markdown(shown.rename(columns={"dataset": "section", "peak_gib": "peak memory (GiB)"}))


def _how(made: Made) -> list[str]:
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    return [
        f"Encoder {made.encoder}, seed {made.seed}, computed on {made.device} of a machine with {os.cpu_count()} cores "
        f"({platform.machine()}, {platform.system()}). Intervals are percentiles of {_RESAMPLES} resamplings.",
        f"Python {platform.python_version()}, {versions}.",
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "from its sources"


def _as_markdown(table: pd.DataFrame) -> str:
    lines = [table.columns, ["---"] * table.shape[1], *table.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
