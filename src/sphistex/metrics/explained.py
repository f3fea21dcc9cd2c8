"""How much of what can be explained a model explains, at spots that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sphistex._parts import gene_parts
from sphistex.metrics.accuracy import pearson
from sphistex.metrics.thinning import thin_counts

BETTER, AS_INTERPOLATION, AS_CHANCE = "better", "as interpolation", "as chance"
_FALSE_DISCOVERIES = 0.05


def explained(
    expected: NDArray,
    interpolated: NDArray,
    counts: NDArray,
    *,
    genes: Sequence[str],
    half: NDArray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlation per gene with counts that were not seen, beside interpolation and the noise ceiling.

    Parameters
    ----------
    expected, interpolated
        What a model and what interpolation predicts, (n_spots, n_genes).
    counts
        What was measured there, and seen by neither, (n_spots, n_genes).
    genes
        Names of the genes.
    half
        The other half of the counts, (n_spots, n_genes), where ``counts`` are one of two independent halves; None
        where they are all.
    seed
        Of the halves into which ``counts`` are thinned for the ceiling where no other is given.

    Returns
    -------
    Table with index ``gene`` and columns ``pearson``; ``interpolation``, that of interpolation; ``ceiling``, the
    largest r that the noise of the counts allows (NaN of fractional counts); ``explained_share``, r as a share of the
    ceiling (NaN where chance left none); and ``verdict``: ``"as chance"`` where r is not positive beyond chance
    (one-sided, at a false discovery rate of 5 % over the genes), ``"as interpolation"`` where it is not above that of
    interpolation by at least its standard error, otherwise ``"better"``.

    References
    ----------
    The standard error of the difference of two correlations with the same counts: Dunn & Clark, Correlation
    coefficients measured on the same individuals, JASA 1969.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rates = rng.gamma(2.0, 5.0, (300, 2))
    >>> counts = rng.poisson(rates)
    >>> table = explained(rates * [1, 0], rates.mean(0) + 0 * rates, counts, genes=["known", "unknown"])
    >>> table.verdict.tolist()
    ['better', 'as chance']
    """
    whole = not any((counts[:, some] % 1).any() for some in gene_parts(*counts.shape))
    parts: list[tuple[NDArray, ...]] = []
    for some in gene_parts(*counts.shape):
        one, two, seen = expected[:, some], interpolated[:, some], counts[:, some]
        ceiling = np.full(seen.shape[1], np.nan)  # fractions cannot be thinned
        if whole:
            ceiling = _ceiling(seen, None if half is None else half[:, some], seed)
        parts.append((pearson(one, seen), pearson(two, seen), pearson(one, two), ceiling))
    r, other, between, ceiling = (np.concatenate(found) for found in zip(*parts, strict=True))
    n_spots = len(counts)
    strength = r * np.sqrt(max(n_spots - 2, 1) / np.maximum(1 - r**2, 1e-12))
    by_chance = np.nan_to_num(stats.t.sf(strength, max(n_spots - 2, 1)), nan=1.0)
    chance = stats.false_discovery_control(by_chance) >= _FALSE_DISCOVERIES
    ahead = np.arctanh(_inside(r)) - np.arctanh(_inside(other)) > _standard_error(r, other, between, n_spots)
    verdict = np.where(chance, AS_CHANCE, np.where(ahead, BETTER, AS_INTERPOLATION))
    return pd.DataFrame(
        {
            "pearson": r,
            "interpolation": other,
            "ceiling": ceiling,
            "explained_share": np.where(ceiling > 0, r / np.where(ceiling > 0, ceiling, 1), np.nan),
            "verdict": verdict,
        },
        index=pd.Index(list(genes), name="gene"),
    )


def _ceiling(counts: NDArray, half: NDArray | None, seed: int) -> NDArray[np.float64]:
    """The largest r (n_genes,) that the noise of the counts allows."""
    if half is not None:
        return np.sqrt(pearson(half, counts).clip(0))
    agreement = pearson(*thin_counts(counts, seed=seed)).clip(0)
    return np.sqrt(2 * agreement / (1 + agreement))


def _standard_error(r: NDArray, other: NDArray, between: NDArray, n_spots: int) -> NDArray[np.float64]:
    """Of the difference of two z-transformed correlations with the same counts (n_genes,)."""
    r, other, between = _inside(r), _inside(other), _inside(between)
    rest = 1 - r**2 - other**2
    shared = (between * rest - 0.5 * r * other * (rest - between**2)) / ((1 - r**2) * (1 - other**2))
    return np.sqrt((2 - 2 * np.clip(shared, -1, 1)) / max(n_spots - 3, 1))


def _inside(r: NDArray) -> NDArray[np.float64]:
    """Correlations that can be z-transformed."""
    return np.clip(np.nan_to_num(r), -1 + 1e-9, 1 - 1e-9)
