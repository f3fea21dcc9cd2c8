"""Ridge regression of spots on the mean features of their superpixels, applied to every superpixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from sphistex.bench.methods._tissue import tissue_blocks
from sphistex.bench.problem import Problem
from sphistex.nn.residuals import SmoothResiduals

PENALTIES = 10.0 ** np.arange(-1, 7)
_FOLDS = 5
_PLACES_AT_ONCE = 4096


def ridge(problem: Problem) -> NDArray[np.float32]:
    """Regression alone; the penalty is chosen per gene by cross-validation."""
    rates, _ = _regress(problem)
    return np.maximum(rates, 0)


def ridge_residuals(problem: Problem) -> NDArray[np.float32]:
    """Regression, and the residuals of the spots smoothed over the section."""
    rates, unexplained = _regress(problem)
    smooth = SmoothResiduals.fit(problem.spots.xy_um, unexplained, seed=problem.seed)
    for first in range(0, len(rates), _PLACES_AT_ONCE):
        part = slice(first, first + _PLACES_AT_ONCE)
        rates[part] += smooth(problem.places_um[part])
    return np.maximum(rates, 0)


def _regress(problem: Problem) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Rates (n_superpixels, n_genes), some below zero, and residuals of the spots (n_spots, n_genes).

    The residuals are of spots that the fit has not seen: those of its own spots are too small.
    """
    scaling, inputs = _bag_means(problem)
    folds = KFold(_FOLDS, shuffle=True, random_state=problem.seed)
    held_out = np.stack(
        [
            cross_val_predict(Ridge(penalty), inputs, problem.density, cv=folds).reshape(problem.density.shape)
            for penalty in PENALTIES
        ]
    )
    best = ((held_out - problem.density) ** 2).sum(1).argmin(0)
    fitted = Ridge(PENALTIES[best]).fit(inputs, problem.density)
    rates = np.zeros((len(problem.places_um), len(best)), dtype=np.float32)
    for place, vectors in tissue_blocks(problem.features):
        rates[place] = fitted.predict(scaling.transform(vectors)).reshape(len(place), -1)  # one gene comes back flat
    return rates, problem.density - held_out[best, :, np.arange(len(best))].T


def _bag_means(problem: Problem) -> tuple[StandardScaler, NDArray[np.float64]]:
    """Standardisation over the tissue's superpixels, and the bags' mean features (n_spots, dim) after it."""
    weights = problem.bags.weights[:, problem.mask.ravel()].tocsc()
    scaling, sums = StandardScaler(), np.zeros((weights.shape[0], problem.features.dim))
    for place, vectors in tissue_blocks(problem.features):
        scaling.partial_fit(vectors)
        sums += weights[:, place] @ vectors
    return scaling, scaling.transform(sums / np.asarray(weights.sum(1)))
