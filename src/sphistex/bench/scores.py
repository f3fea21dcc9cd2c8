"""How near a method's map comes to what was measured, per gene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from sphistex.bench.problem import Problem
from sphistex.metrics import correlation_by_scale, noise_ceiling, published, spot_error
from sphistex.metrics.accuracy import Statistic

TISSUE, OFF_SPOT = "tissue", "off-spot"
CEILING = "noise ceiling"
_STATISTICS: tuple[Statistic, ...] = ("pearson", "spearman")
# Genes whose maps are copied at once.
_GENES_AT_ONCE = 64


@dataclass(frozen=True)
class Area:
    """Where maps are scored, and against what.

    Parameters
    ----------
    protocol, name
        What it is called in tables.
    reading
        Sparse (n_places, n_superpixels): what of each tissue superpixel counts for each place.
    truth
        What was measured at the places, sparse (n_places, n_genes).
    mask
        (rows, columns), where the places lie, row by row.
    factors
        Block sides in places, over which is summed.
    pitch_um
        Side of a place.
    min_share
        Share of a block that must be places.
    independent_half
        Whether the truth is one half of the counts, and ``whole`` both.
    whole
        All that was measured there, (n_places, n_genes), from which the noise ceiling comes.
    """

    protocol: str
    name: str
    reading: sparse.csr_matrix
    truth: sparse.csc_matrix
    mask: NDArray[np.bool_]
    factors: tuple[int, ...]
    pitch_um: float
    min_share: float
    independent_half: bool
    whole: sparse.csc_matrix

    def ceiling(self, genes: list[str], seed: int) -> pd.DataFrame:
        """The largest Pearson r that the truth's noise allows; empty of counts that are fractions."""
        if is_fractional(self.whole):
            return pd.DataFrame(columns=["gene", "scale_um", "statistic", "value"])
        table = noise_ceiling(
            self.whole,
            self.mask,
            independent_half=self.independent_half,
            seed=seed,
            genes=genes,
            factors=self.factors,
            pitch_um=self.pitch_um,
            min_share=self.min_share,
        )
        return table.rename(columns={"ceiling": "value"}).assign(statistic="pearson")


def is_fractional(counts: sparse.spmatrix) -> bool:
    """Whether counts are fractions, as of cells shared out by area, which cannot be thinned."""
    return bool((counts.data % 1).any())


def score(area: Area, problem: Problem, values: NDArray[np.float32], ceiling: pd.DataFrame) -> pd.DataFrame:
    """Tidy table with columns ``gene``, ``scale_um``, ``statistic`` and ``value`` of a map (n_superpixels, n_genes).

    The finest of several scales has Pearson's r only: ranking it takes longer than everything else together. What
    share of the ceiling (that of the area) Pearson's r reaches is there if the ceiling is known.
    """
    finest, coarser = area.factors[:1], area.factors[1:]
    passes = [(finest, _STATISTICS[:1]), (coarser, _STATISTICS)] if coarser else [(finest, _STATISTICS)]
    known = ceiling.drop(columns="statistic").rename(columns={"value": "ceiling"}) if len(ceiling) else None
    parts = []
    for first in range(0, values.shape[1], _GENES_AT_ONCE):
        part = slice(first, first + _GENES_AT_ONCE)
        seen, truth, genes = area.reading @ values[:, part], area.truth[:, part], problem.genes[part]
        for factors, statistics in passes:
            table = correlation_by_scale(
                seen,
                truth,
                area.mask,
                genes=genes,
                factors=factors,
                pitch_um=area.pitch_um,
                min_share=area.min_share,
                statistics=statistics,
                ceiling=known,
            )
            parts.append(_tidy(table.drop(columns="ceiling", errors="ignore")))
        if area.name == TISSUE:
            parts.append(_tidy(published(seen, truth, area.mask, genes=genes).assign(scale_um=area.pitch_um)))
    if area.name == TISSUE:
        spots = problem.spots
        totals = spot_error(values, problem.mask, problem.bags.weights, spots.counts, genes=problem.genes)
        parts.append(_tidy(totals.assign(scale_um=2 * float(np.median(spots.radius_um)))))
    return pd.concat(parts, ignore_index=True)


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    return table.melt(["gene", "scale_um"], var_name="statistic")
