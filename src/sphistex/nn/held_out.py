"""What a model predicts for spots that it has not seen: the only honest judgement without a truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sphistex._parts import gene_parts
from sphistex.nn.histex import HISTEX
from sphistex.nn.memory import Portions
from sphistex.nn.mil import Objective
from sphistex.nn.residuals import left_out
from sphistex.nn.training import BagData

_BAGS_AT_ONCE = 256
# More spots than this are not needed to judge a model.
_MAX_BAGS = 2000
# Mixes of model and interpolation, and steps of expectation maximisation to learn which of them genes have.
_SHARES = np.linspace(0, 1, 11)
_STEPS_OF_PRIOR = 10
_TINY = 1e-3


@dataclass(frozen=True)
class HeldOut:
    """Spots that a model of the ensemble had not seen.

    Parameters
    ----------
    area
        Superpixels of each spot's tissue (n_spots,).
    counts
        What was measured (n_spots, n_genes).
    expected
        What was predicted by the model that had not been fitted to the spot, without seeing its counts or residual.
        The epoch at which this model stopped was chosen by its spots.
    interpolated
        What smoothing the other spots' counts says.
    """

    area: NDArray[np.floating]
    counts: NDArray[np.floating]
    expected: NDArray[np.floating]
    interpolated: NDArray[np.floating]

    def image_share(self) -> NDArray[np.float64]:
        """Share of the model in the mix with interpolation that explains each gene's counts (n_genes,).

        The spots of one gene often say little of it. How the shares of all genes are distributed is therefore learnt
        first (empirical Bayes), and a gene's share is its posterior mean. Each gene's likelihood is Poisson's, made as
        flat as its counts are overdispersed (quasi-likelihood).
        """
        likelihood = np.concatenate(
            [self.take(genes)._likelihood() for genes in gene_parts(*self.counts.shape)], axis=1
        )
        likelihood = np.exp(likelihood - likelihood.max(0))
        prior = np.full((len(_SHARES), 1), 1 / len(_SHARES))
        for _ in range(_STEPS_OF_PRIOR):
            posterior = likelihood * prior
            posterior /= posterior.sum(0)
            prior = posterior.mean(1, keepdims=True)
        return _SHARES @ posterior

    def _likelihood(self) -> NDArray[np.float64]:
        """Logarithm of the likelihood of each share of the model, (n_shares, n_genes)."""
        likelihood = np.empty((len(_SHARES), self.counts.shape[1]))
        dispersion = np.full(self.counts.shape[1], np.inf)
        for row, share in zip(likelihood, _SHARES, strict=True):
            mix = self.mixed(share).expected
            row[:] = (self.counts * np.log(mix + _TINY) - mix).sum(0)
            dispersion = np.minimum(dispersion, ((self.counts - mix) ** 2 / (mix + _TINY)).mean(0))
        return likelihood / np.maximum(dispersion, 1)

    def take(self, genes: slice) -> HeldOut:
        """Those of some genes, in double precision."""
        counts, expected, interpolated = (
            x[:, genes].astype(np.float64) for x in (self.counts, self.expected, self.interpolated)
        )
        return HeldOut(self.area, counts, expected, interpolated)

    def mixed(self, image_share: NDArray[np.floating] | float) -> HeldOut:
        """The same spots, predicted by the mix."""
        return replace(self, expected=image_share * self.expected + (1 - image_share) * self.interpolated)


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
        (n_models, n_bags), True where a model has not seen a bag; a bag is left out by one model at most.
    xy_um
        Centres of the bags (n_bags, 2), those of different sections far apart from each other.
    residuals
        Whether smoothed residuals belong to the prediction.
    seed
        Of :func:`sphistex.nn.residuals.left_out`, and of which bags are judged where there are very many.
    """
    area, counts = data.weight.sum(1).cpu().numpy(), data.counts.cpu().numpy()
    unseen = np.flatnonzero(held_out.any(0))
    if len(unseen) > _MAX_BAGS:
        unseen = np.sort(np.random.default_rng(seed).choice(unseen, _MAX_BAGS, replace=False))
    by_whom = held_out[:, unseen].argmax(0)
    shown = data.spot_mask.clone()
    if shown.shape[1] > 1:
        shown[:, 0] = False  # the nearest spot is the bag's own
    expected = _expected(network, objective, data, shown, unseen)[by_whom, np.arange(len(unseen))]
    size = area[:, None]
    if residuals:
        everywhere = _expected(network, objective, data, data.spot_mask, np.arange(len(area)))
        for model in np.unique(by_whom):
            mine = by_whom == model
            rest = (counts - everywhere[model]) / size
            expected[mine] += size[unseen[mine]] * left_out(xy_um, rest, unseen[mine], seed=seed)
    density = counts / size
    section = np.zeros(len(size), dtype=int) if data.section is None else data.section.cpu().numpy()
    mean = np.stack([density[section == one].mean(0) for one in range(section.max() + 1)])[section]
    interpolated = size[unseen] * (mean[unseen] + left_out(xy_um, density - mean, unseen, seed=seed))
    return HeldOut(area[unseen], counts[unseen], np.maximum(expected, 0), np.maximum(interpolated, 0))


@torch.no_grad()
def _expected(
    network: HISTEX, objective: Objective, data: BagData, shown: Tensor, bags: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Counts of some bags by every model, seeing the spots that are ``shown``, (n_models, n_bags, n_genes)."""
    data = replace(data, spot_mask=shown)
    out = np.empty((network.n_models, len(bags), data.counts.shape[1]), dtype=np.float32)

    def fill(portions: Sequence[Tensor]) -> None:
        first = 0
        for some in portions:
            latent, depth = data.latent(network, some), data.depth_of(some)
            found = objective.expected(latent, network.loadings, data.weight[some], None, depth)
            out[:, first : first + len(some)] = found.cpu().numpy()
            first += len(some)

    Portions(_BAGS_AT_ONCE).of(torch.from_numpy(bags).to(shown.device), fill)
    return out
