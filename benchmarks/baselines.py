"""Simple methods on the same spots, features and genes: the lines that a model has to beat."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from sphistex.bags import Bags
from sphistex.nn import FeatureMap, Spots
from sphistex.nn.residuals import SmoothResiduals

_PENALTIES = 10.0 ** np.arange(-1, 7)


def mil_ridge(
    features: FeatureMap, bags: Bags, spots: Spots, *, penalties: np.ndarray = _PENALTIES
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of spots on the mean features of their bags, applied to every superpixel.

    The penalty is chosen per gene by five-fold cross-validation. Returns the map (rows, columns, n_genes) alone and
    with the smoothed residuals of the spots.
    """
    vectors = features.gather(np.flatnonzero(features.mask))
    vectors = (vectors - vectors.mean(0)) / np.maximum(vectors.std(0), 1e-4)
    weights = bags.weights[:, features.mask.ravel()]
    area = np.asarray(weights.sum(1))
    inputs, targets = weights @ vectors / area, spots.counts / area

    errors, held_out = np.zeros((len(penalties), targets.shape[1])), np.zeros((len(penalties), *targets.shape))
    for train, test in KFold(5, shuffle=True, random_state=0).split(inputs):
        for i, penalty in enumerate(penalties):
            held_out[i][test] = Ridge(penalty).fit(inputs[train], targets[train]).predict(inputs[test])
    errors = ((held_out - targets) ** 2).sum(1)
    best = errors.argmin(0)
    rates = np.zeros((len(vectors), targets.shape[1]))
    for i in np.unique(best):
        fitted = Ridge(penalties[i]).fit(inputs, targets[:, best == i])
        rates[:, best == i] = fitted.predict(vectors).reshape(len(vectors), -1)  # one gene comes back flat
    # residuals of spots that the fit has not seen: those of its own spots are too small
    unexplained = targets - held_out[best, :, np.arange(len(best))].T
    smooth = SmoothResiduals.fit(spots.xy_um, unexplained)
    place = (np.argwhere(features.mask)[:, ::-1] + 0.5) * bags.grid.pitch_um
    corrected = np.maximum(rates + np.concatenate([smooth(p) for p in np.array_split(place, 50)]), 0)
    return _raster(rates, features.mask), _raster(corrected, features.mask)


def interpolated(method: str, spots: Spots, bags: Bags, mask: np.ndarray) -> np.ndarray:
    """Spots carried to superpixels, ``"nearest"`` or ``"linear"``, as counts per superpixel."""
    from sphistex.metrics import baselines

    place = (np.argwhere(mask)[:, ::-1] + 0.5) * bags.grid.pitch_um
    area = np.asarray(bags.weights.sum(1))
    return _raster(getattr(baselines, method)(spots.xy_um, spots.counts / area, place), mask)


def _raster(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    out = np.zeros((*mask.shape, values.shape[1]), dtype=np.float32)
    out[mask] = values
    return out
