"""How far predictions lie from what is measured, learnt from spots that the model had not seen.

The expression behind a prediction μ is taken to be Gamma distributed around it and a count to be Poisson given the
expression, so that counts are negative binomial. The variance of the Gamma is learnt per gene; how it changes with μ
and with the area looked at was measured on two sections with a truth at 8 µm, a kidney (Visium HD) and a pancreas
(Xenium), and is the same there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sphistex._parts import gene_parts

if TYPE_CHECKING:
    from sphistex.nn.held_out import HeldOut

# Fewer spots than this say nothing about the ends of a distribution.
MIN_SPOTS = 50
# Relative variance of the error falls with the side of the area looked at to this power, on both sections.
_EXPONENT = 1.06
# It is larger by this factor at left-out spots than on the map, where the nearest spot is seen.
_UNSEEN = 1.3
# Variance of the error ∝ μ² + this × μ × the gene's mean.
_CONTRAST = 3.0
# What is predicted to be nothing still has this share of the gene's mean.
_FLOOR = 0.03
# The variance of a gene is drawn to that of all genes with this prior standard deviation of its logarithm.
_PRIOR = 0.7
_VARIANCES = np.geomspace(0.01, 30.0, 32)
_LEVELS = np.linspace(0.0, 1.0, 201)
# Ways in which what lies outside an interval is split between its ends.
_SPLITS = 8
# Nominal levels around the wanted one; the one whose intervals hold as often as wanted is taken.
_NEARBY = np.linspace(-0.12, 0.04, 9)
# Expected counts that differ by less than this share have the same interval.
_RESOLUTION = 0.01


@dataclass(frozen=True)
class Calibration:
    """Distribution of what is measured, given what is predicted.

    Parameters
    ----------
    mean
        Mean counts per superpixel (n_genes,).
    variance
        Relative variance of the error at left-out spots (n_genes,), at the gene's mean.
    side_um
        Side of the square that has the area of these spots.
    pitch_um
        Side of a superpixel.
    coverage
        Of the central intervals of the ``_LEVELS``, at the left-out spots (n_levels,), over all genes.
    n_spots
        Left-out spots it was learnt from.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    side_um: float
    pitch_um: float
    coverage: NDArray[np.float64]
    n_spots: int

    @classmethod
    def learn(cls, held_out: HeldOut, pitch_um: float, *, seed: int = 0) -> Calibration:
        """Learn from left-out spots.

        Parameters
        ----------
        held_out
            What was measured and predicted there.
        pitch_um
            Side of a superpixel.
        seed
            Of the random numbers that make ranks of counts continuous.

        Raises
        ------
        ValueError
            If there are fewer than ``MIN_SPOTS`` spots.
        """
        if len(held_out.counts) < MIN_SPOTS:
            raise ValueError(f"{len(held_out.counts)} left-out spots are too few to learn from: {MIN_SPOTS} are needed")
        parts = list(gene_parts(*held_out.counts.shape))
        mean = np.concatenate([_looked_at(held_out, some)[0].mean(0) for some in parts]) / held_out.area.mean()
        variance = _most_likely(np.concatenate([_likelihood(*_looked_at(held_out, some)) for some in parts], axis=1))
        random = np.random.default_rng(seed)
        off = np.empty(held_out.counts.shape, dtype=np.float32)
        for some in parts:
            counts, expected, level = _looked_at(held_out, some)
            shape, chance = _nb(expected, _spread(variance[some], expected, level))
            below, at = stats.nbinom.cdf(counts - 1, shape, chance), stats.nbinom.pmf(counts, shape, chance)
            off[:, some] = np.abs(2 * (below + random.random(counts.shape) * at) - 1)
        coverage = np.quantile(off, _LEVELS).astype(np.float64)
        side_um = float(np.sqrt(held_out.area.mean()) * pitch_um)
        return cls(mean, variance, side_um, pitch_um, coverage, len(counts))

    def take(self, genes: ArrayLike) -> Calibration:
        """That of some genes (indices or boolean)."""
        genes = np.asarray(genes)
        return Calibration(
            self.mean[genes], self.variance[genes], self.side_um, self.pitch_um, self.coverage, self.n_spots
        )

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibration:
        """Back from :meth:`to_json`."""
        restored: dict[str, Any] = {k: np.asarray(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**restored)

    def error_variance(self, expected: NDArray, area: NDArray) -> NDArray[np.float64]:
        """Variance of the expression behind ``expected`` counts (n, n_genes) of areas of (n,) superpixels."""
        level = area[:, None] * self.mean
        side = np.sqrt(area)[:, None] * self.pitch_um
        variance = self.variance / _UNSEEN * (side / self.side_um) ** -_EXPONENT
        return _spread(variance, _floored(expected, level), level)

    def reliability(self, expected: NDArray, area: NDArray) -> NDArray[np.float64]:
        """Share of the variance of the expression over places that the predictions hold (n_genes,).

        Parameters
        ----------
        expected
            Counts (n_places, n_genes).
        area
            Superpixels (n_places,) that they are summed over.
        """
        signal, error = (
            np.var(expected / area[:, None], axis=0),
            self.error_variance(expected, area) / area[:, None] ** 2,
        )
        return signal / np.maximum(signal + error.mean(0), 1e-300)

    def expression_interval(self, expected: NDArray, area: NDArray, level: float) -> tuple[NDArray, NDArray]:
        """Where the expression behind ``expected`` counts (n, n_genes) lies with probability ``level``."""
        shape, scale = self._gamma(expected, area)
        tail = (1 - self._nominal(level)) / 2
        return stats.gamma.ppf(tail, shape, scale=scale), stats.gamma.ppf(1 - tail, shape, scale=scale)

    def probability_above(self, expected: NDArray, area: NDArray, threshold: ArrayLike) -> NDArray[np.float64]:
        """Probability that the expression behind ``expected`` counts (n, n_genes) is above ``threshold`` counts."""
        shape, scale = self._gamma(expected, area)
        return stats.gamma.sf(threshold, shape, scale=scale)

    def count_interval(self, expected: NDArray, area: NDArray, level: float) -> tuple[NDArray, NDArray]:
        """Where counts lie that the instrument would measure, in a share ``level`` of each gene's places.

        Counts are whole numbers, so that no interval holds with exactly the wanted probability: of the shortest
        intervals those are taken that hold as often as wanted on the average over the places of a gene. A gene that
        is hardly ever counted has zero everywhere, and is right more often.

        Parameters
        ----------
        expected
            Counts (n, n_genes).
        area
            Superpixels (n,) that they are summed over.
        level
            Between 0 and 1.
        """
        lower, upper = np.empty(expected.shape), np.empty(expected.shape)
        wanted = self._nominal(level)
        for gene in range(expected.shape[1]):
            one = self.take([gene])
            keys, of_place, places = np.unique(
                np.column_stack([np.rint(np.log(expected[:, gene] + 1e-9) / _RESOLUTION), area]),
                axis=0,
                return_inverse=True,
                return_counts=True,
            )
            mean = np.exp(keys[:, :1] * _RESOLUTION)
            shape, chance = one._negative_binomial(mean, keys[:, 1])
            found = [_shortest(shape, chance, x) for x in np.clip(wanted + _NEARBY, 0.01, 0.999)]
            off = [abs(float(places @ coverage[:, 0]) / len(area) - wanted) for _, _, coverage in found]
            low, high, _ = found[int(np.argmin(off))]
            lower[:, gene], upper[:, gene] = low[of_place.ravel(), 0], high[of_place.ravel(), 0]
        return lower, upper

    def _nominal(self, level: float) -> float:
        """Level of the model's intervals at which they held, at the left-out spots, as often as ``level`` says."""
        return float(np.interp(level, _LEVELS, self.coverage))

    def _gamma(self, expected: NDArray, area: NDArray) -> tuple[NDArray, NDArray]:
        """Shape and scale of the expression behind ``expected`` counts."""
        mean = _floored(expected, area[:, None] * self.mean)
        variance = self.error_variance(expected, area)
        return mean**2 / variance, variance / mean

    def _negative_binomial(self, expected: NDArray, area: NDArray) -> tuple[NDArray, NDArray]:
        """Parameters, as scipy has them, of the counts where ``expected`` is predicted."""
        return _nb(_floored(expected, area[:, None] * self.mean), self.error_variance(expected, area))


def _floored(expected: NDArray, level: NDArray) -> NDArray[np.float64]:
    """Expected counts that are never nothing; ``level`` is the gene's mean for the same area."""
    return (1 - _FLOOR) * expected + _FLOOR * np.maximum(level, 1e-9)


def _spread(variance: NDArray, expected: NDArray, level: NDArray) -> NDArray[np.float64]:
    """Variance of the expression behind ``expected``, where ``variance`` is the relative one at the gene's mean."""
    return variance * (_CONTRAST * level * expected + expected**2) / (1 + _CONTRAST)


def _nb(mean: NDArray, extra: NDArray) -> tuple[NDArray, NDArray]:
    """Negative binomial with ``mean`` and variance ``mean + extra``."""
    shape = np.maximum(mean**2 / extra, 1e-6)
    return shape, shape / (shape + mean)


def _looked_at(held_out: HeldOut, genes: slice) -> tuple[NDArray, NDArray, NDArray]:
    """Counts of some genes, what was predicted, and their mean for the same area, all (n_spots, n_some_genes)."""
    counts = np.rint(held_out.counts[:, genes]).astype(np.float64)
    level = held_out.area[:, None] * (counts.mean(0) / held_out.area.mean())
    return counts, _floored(held_out.expected[:, genes].astype(np.float64), level), level


def _likelihood(counts: NDArray, expected: NDArray, level: NDArray) -> NDArray[np.float64]:
    """Logarithm of the likelihood of each gene's counts (n_variances, n_genes) under the ``_VARIANCES``."""
    return np.array(
        [stats.nbinom.logpmf(counts, *_nb(expected, _spread(v, expected, level))).sum(0) for v in _VARIANCES]
    )


def _most_likely(likelihood: NDArray) -> NDArray[np.float64]:
    """Relative variance of each gene's error (n_genes,) under which its counts are most likely."""
    alone = np.log(_VARIANCES[likelihood.argmax(0)])
    prior = -((np.log(_VARIANCES)[:, None] - np.median(alone)) ** 2) / (2 * _PRIOR**2)
    return _VARIANCES[(likelihood + prior).argmax(0)]


def _shortest(shape: NDArray, chance: NDArray, level: float) -> tuple[NDArray, NDArray, NDArray]:
    """Shortest intervals of counts whose probability is about ``level``, and their probability."""
    best: tuple[NDArray, ...] | None = None
    for tail in np.linspace(0, 1 - level, _SPLITS):
        lower = stats.nbinom.ppf(tail, shape, chance) if tail > 0 else np.zeros(shape.shape)
        below = stats.nbinom.cdf(lower - 1, shape, chance)
        upper = stats.nbinom.ppf(np.minimum(below + level, 1 - 1e-9), shape, chance)
        held, less = (stats.nbinom.cdf(x, shape, chance) - below for x in (upper, upper - 1))
        nearer = (np.abs(less - level) < np.abs(held - level)) & (upper > lower)
        upper, held = np.where(nearer, upper - 1, upper), np.where(nearer, less, held)
        # of intervals of one length, the one nearest to the level
        cost = upper - lower + np.abs(held - level)
        found = (cost, lower, upper, held)
        best = (
            found if best is None else tuple(np.where(cost < best[0], a, b) for a, b in zip(found, best, strict=True))
        )
    assert best is not None
    return best[1], best[2], best[3]
