"""What a model predicts for spots that it has not seen: the only honest judgement without a truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import Objective, bag_sum
from sphistex.nn.residuals import left_out
from sphistex.nn.training import BagData

_BAGS_AT_ONCE = 256
# More spots than this are not needed to judge a model.
_MAX_BAGS = 2000


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
        Of :func:`sphistex.nn.residuals.left_out`, and of which bags are judged where there are very many.
    """
    area, counts = data.weight.sum(1).cpu().numpy(), data.counts.cpu().numpy()
    unseen = np.flatnonzero(held_out.any(0))
    if len(unseen) > _MAX_BAGS:
        unseen = np.sort(np.random.default_rng(seed).choice(unseen, _MAX_BAGS, replace=False))
    by_whom = held_out[:, unseen, None]
    shown = data.spot_mask.clone()
    if shown.shape[1] > 1:
        shown[:, 0] = False  # the nearest spot is the bag's own
    expected = (_expected(network, objective, data, shown, unseen) * by_whom).sum(0) / by_whom.sum(0)
    size = area[:, None]
    if residuals:
        everywhere = _expected(network, objective, data, data.spot_mask, np.arange(len(area)), average=True)[0]
        expected += size[unseen] * left_out(xy_um, (counts - everywhere) / size, unseen, seed=seed)
    density = counts / size
    mean = density.mean(0)
    interpolated = size[unseen] * (mean + left_out(xy_um, density - mean, unseen, seed=seed))
    return HeldOut(xy_um[unseen], area[unseen], counts[unseen], np.maximum(expected, 0), np.maximum(interpolated, 0))


@torch.no_grad()
def _expected(
    network: HISTEX,
    objective: Objective,
    data: BagData,
    shown: Tensor,
    bags: NDArray[np.intp],
    *,
    average: bool = False,
) -> NDArray[np.float64]:
    """Counts of some bags, seeing the spots that are ``shown``, by every model or on average.

    Returns (n_models or 1, n_bags, n_genes).
    """
    data = replace(data, spot_mask=shown)
    parts = []
    for some in torch.from_numpy(bags).to(shown.device).split(_BAGS_AT_ONCE):
        sums = bag_sum(objective.rate(data.output(network, some)), data.weight[some])
        parts.append((sums.mean(0, keepdim=True) if average else sums).cpu().numpy())
    return np.concatenate(parts, axis=1).astype(np.float64)
