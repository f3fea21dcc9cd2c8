"""What differs between sections of the same tissue: the stain, and how many counts of each gene are taken."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sphistex.nn.inputs import Inputs

# Counts of a gene that it takes until its own share in a section's counts says as much as that in all sections.
_ENOUGH_COUNTS = 100.0
# Superpixels that say how the features of a section are distributed.
_MAX_SAMPLED = 10_000


class Scaling(nn.Module):
    """Scales of a section.

    ``mean`` and ``std`` (d_features,) of its features; ``depth`` (n_genes,), by what factor more counts of each gene
    are taken than on the average over the sections that a model was fitted to.
    """

    mean: Tensor
    std: Tensor
    depth: Tensor

    def __init__(self, d_features: int, n_genes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_features))
        self.register_buffer("std", torch.ones(d_features))
        self.register_buffer("depth", torch.ones(n_genes))

    @classmethod
    def of(cls, vectors: Tensor, depth: NDArray[np.floating]) -> Scaling:
        """That of a section with features (n, d_features)."""
        scaling = cls(vectors.shape[1], len(depth))
        scaling.mean.copy_(vectors.mean(0))
        scaling.std.copy_(vectors.std(0).clamp_min(1e-4))
        scaling.depth.copy_(torch.from_numpy(depth))
        return scaling

    def at_same_depth(self) -> Scaling:
        """The same features where as many counts are taken as on the average."""
        other = copy.deepcopy(self)
        other.depth.fill_(1.0)
        return other

    def forward(self, vectors: Tensor) -> Tensor:
        """Features (..., d_features) with mean 0 and standard deviation 1 over the section."""
        return (vectors - self.mean) / self.std


def density(sections: Sequence[Inputs]) -> NDArray[np.float64]:
    """Mean counts per superpixel of the spots of all sections (n_genes,)."""
    totals = sum(inputs.spots.counts.sum(0, dtype=np.float64) for inputs in sections)
    return np.asarray(totals / sum(float(inputs.bags.weights.sum()) for inputs in sections))


def depth(inputs: Inputs, density: NDArray[np.floating]) -> NDArray[np.float64]:
    """By what factor more counts of each gene a section has in its spots than at this ``density`` (n_genes,).

    The factor of all counts together holds for each gene that has few; a gene with many has its own.
    """
    if not len(inputs.spots):
        return np.ones(len(density))
    found = inputs.spots.counts.sum(0, dtype=np.float64)
    expected = density * float(inputs.bags.weights.sum())
    overall = found.sum() / max(expected.sum(), 1e-12)
    expected = expected * overall
    return np.asarray(overall * (found + _ENOUGH_COUNTS) / (expected + _ENOUGH_COUNTS))


def sampled(inputs: Inputs, seed: int) -> Tensor:
    """Features of some superpixels, in the spots where there are any, (n, d_features)."""
    if len(inputs.spots):
        places = np.unique(inputs.bags.weights.indices)
    else:
        places = np.flatnonzero(inputs.features.mask)
    if len(places) > _MAX_SAMPLED:
        places = np.sort(np.random.default_rng(seed).choice(places, _MAX_SAMPLED, replace=False))
    return torch.from_numpy(inputs.features.gather(places.astype(np.int64)))
