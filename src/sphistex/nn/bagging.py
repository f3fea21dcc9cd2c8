"""The bags that a model is trained on, of one section or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sphistex.bags import Bags
from sphistex.lattice import enhancement_matrix
from sphistex.nn.inputs import Inputs
from sphistex.nn.parameters import FitParameters
from sphistex.nn.training import folds

# Superpixels that a model is trained on at most, so that their features fit in memory whatever the section's size.
_MAX_INSTANCES = 300_000
# Sections are laid out this far from each other, so that no smooth map of one reaches another.
_APART_UM = 1e7


@dataclass(frozen=True)
class TrainingBags:
    """Bags of a section.

    Parameters
    ----------
    instances
        Superpixels that lie in some bag, by their row-major index (n_instances,).
    index, weight
        (n_bags, n1): each bag's places in ``instances`` and their share of area inside the spot; padding has weight 0.
    xy_um
        Centres (n_bags, 2).
    sources
        Which spots each bag is the mean of, sparse (n_bags, n_spots).
    held_out
        (n_models, n_bags), True where a model does not see a bag.
    """

    instances: NDArray[np.int64]
    index: NDArray[np.int64]
    weight: NDArray[np.float32]
    xy_um: NDArray[np.float64]
    sources: sparse.csr_matrix
    held_out: Tensor

    def __len__(self) -> int:
        return len(self.weight)


def training_bags(sections: Sequence[Inputs], parameters: FitParameters, seed: int) -> list[TrainingBags]:
    """The bags of all sections, as many of each as there is memory for the superpixels of all."""
    found = [_on_tissue(section, parameters) for section in sections]
    sizes = [bags.weights.nnz for *_, bags in found]
    made = []
    for (sources, xy_um, bags), size in zip(found, sizes, strict=True):
        chosen = _within_memory(bags, _MAX_INSTANCES * size // max(sum(sizes), 1), seed)
        index, weight = bags.take(chosen).padded()
        instances, place = np.unique(index, return_inverse=True)
        sources = sources[chosen]
        held_out = _held_out(sources, parameters, seed)
        made.append(TrainingBags(instances, place.reshape(weight.shape), weight, xy_um[chosen], sources, held_out))
    return made


def side_by_side(bags: Sequence[TrainingBags]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Index and weight of all sections' bags, where their instances follow one another."""
    first = np.cumsum([0, *(len(one.instances) for one in bags[:-1])])
    index = padded([one.index + start for one, start in zip(bags, first, strict=True)])
    return index, padded([one.weight for one in bags])


def padded(parts: Sequence[NDArray]) -> NDArray:
    """Arrays (n_bags, k, ...) one below the other, with zeros behind those that have a smaller k."""
    widest = max(part.shape[1] for part in parts)
    rest = [(0, 0)] * (parts[0].ndim - 2)
    return np.concatenate([np.pad(part, [(0, 0), (0, widest - part.shape[1]), *rest]) for part in parts])


def far_apart(bags: Sequence[TrainingBags]) -> NDArray[np.float64]:
    """Centres of all bags (n_bags, 2), with those of different sections out of each other's reach."""
    return np.concatenate([one.xy_um + [number * _APART_UM, 0.0] for number, one in enumerate(bags)])


def _on_tissue(section: Inputs, parameters: FitParameters) -> tuple[sparse.csr_matrix, NDArray[np.float64], Bags]:
    """Which measured spots each bag on tissue is the mean of, the bags' centres in µm, and the bags."""
    spots, bags = section.spots, section.bags
    sources = sparse.identity(len(spots), format="csr")
    if parameters.enhanced_bags:
        sources = enhancement_matrix(spots.xy_um, spots.pitch_um)
        disks = Bags.from_disks(
            bags.grid, sources @ spots.xy_um / bags.grid.mpp, sources @ spots.radius_um / bags.grid.mpp
        )
        bags = disks.within(section.features.mask)
    on_tissue = np.asarray(bags.weights.sum(1)).ravel() > 0
    return sources[on_tissue], (sources @ spots.xy_um)[on_tissue], bags.take(on_tissue)


def _within_memory(bags: Bags, most: int, seed: int) -> NDArray[np.intp]:
    """As many of the bags, chosen at random, as hold no more superpixels than ``most``; in order."""
    order = np.random.default_rng(seed).permutation(len(bags.weights.indptr) - 1)
    used = np.cumsum(np.diff(bags.weights.indptr)[order]) <= most
    return np.sort(order[used])


def _held_out(sources: sparse.csr_matrix, parameters: FitParameters, seed: int) -> Tensor:
    """Bags that each model does not see: held-out spots, and what was made from them."""
    n_bags, n_spots = sources.shape
    if not parameters.holdout:
        return torch.zeros(parameters.n_models, n_bags, dtype=torch.bool)
    spots = folds(n_spots, parameters.n_models, share=parameters.holdout, seed=seed).numpy()
    return torch.from_numpy(np.asarray((sources @ spots.T) > 0).T.copy())
