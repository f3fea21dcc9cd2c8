"""What a model predicts for spots that it has not seen: the only honest judgement without a truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import Objective, bag_sum
from sphistex.nn.residuals import SmoothResiduals
from sphistex.nn.training import BagData

_BAGS_AT_ONCE = 256


@dataclass(frozen=True)
class HeldOut:
    """Spots that a model of the ensemble had not seen.

    Parameters
    ----------
    xy_um
        Centres (n_spots, 2).
    area
        Superpixels of each spot's tissue (n_spots,).
    counts
        What was measured (n_spots, n_genes).
    expected
        What was predicted by the models that had seen neither the spot's counts nor its residuals.
    interpolated
        What smoothing the other spots' counts says.
    """

    xy_um: NDArray[np.float64]
    area: NDArray[np.floating]
    counts: NDArray[np.floating]
    expected: NDArray[np.floating]
    interpolated: NDArray[np.floating]


def predict_held_out(
    network: HISTEX,
    objective: Objective,
    data: BagData,
    held_out: NDArray[np.bool_],
    xy_um: NDArray[np.float64],
    *,
    residuals: bool,
    seed: int,
) -> HeldOut:
    """Predict every bag by the models that have not seen it.

    Parameters
    ----------
    network, objective, data
        What was trained, on the bags of all spots.
    held_out
        (n_models, n_bags), True where a model has not seen a bag.
    xy_um
        Centres of the bags (n_bags, 2).
    residuals
        Whether smoothed residuals belong to the prediction.
    seed
        Of :meth:`SmoothResiduals.fit`.
    """
    area, counts = data.weight.sum(1).cpu().numpy(), data.counts.cpu().numpy()
    shown = data.spot_mask.clone()
    if shown.shape[1] > 1:
        shown[:, 0] = False  # the nearest spot is the bag's own
    without = _expected(network, objective, data, shown)
    unseen = held_out.any(0)
    expected = (without * held_out[..., None]).sum(0) / np.maximum(held_out.sum(0), 1)[:, None]
    if residuals:
        rest = (counts - _expected(network, objective, data, data.spot_mask).mean(0)) / area[:, None]
        expected += area[:, None] * SmoothResiduals.fit(xy_um, rest, seed=seed).left_out(rest)
    density = counts / area[:, None]
    mean = density.mean(0)
    smooth = mean + SmoothResiduals.fit(xy_um, density - mean, seed=seed).left_out(density - mean)
    interpolated = area[:, None] * smooth
    return HeldOut(
        xy_um[unseen],
        area[unseen],
        counts[unseen],
        np.maximum(expected, 0)[unseen].astype(np.float32),
        np.maximum(interpolated, 0)[unseen].astype(np.float32),
    )


@torch.no_grad()
def _expected(network: HISTEX, objective: Objective, data: BagData, shown: Tensor) -> NDArray[np.float64]:
    """Counts of every bag by every model (n_models, n_bags, n_genes), seeing the spots that are ``shown``."""
    data = BagData(data.features, data.index, data.weight, data.counts, data.spots, shown)
    parts = [
        bag_sum(objective.rate(data.output(network, bags)), data.weight[bags]).cpu().numpy()
        for bags in torch.arange(len(data), device=shown.device).split(_BAGS_AT_ONCE)
    ]
    return np.concatenate(parts, axis=1).astype(np.float64)
