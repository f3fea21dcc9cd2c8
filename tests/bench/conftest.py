"""A section of two genes: one that the image shows, and one that changes slowly over the section."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sphistex.bags import Bags
from sphistex.bench.problem import Problem
from sphistex.grid import Grid
from sphistex.nn import FeatureMap, Spots

GENES = ["image", "field"]


@dataclass(frozen=True)
class Section:
    """A problem and its solution: rates of the tissue (n_superpixels, n_genes)."""

    problem: Problem
    rates: NDArray[np.float64]


def make_section(side: int, seed: int = 0) -> Section:
    """Spots on a square of ``side`` superpixels without its corner; two of three channels show the first gene."""
    rng = np.random.default_rng(seed)
    grid = Grid((side, side), mpp=0.5)
    mask = np.ones(grid.shape, dtype=bool)
    mask[: side // 8, : side // 6] = False
    texture, slow = _field(rng, side, 2.0), _field(rng, side, side / 5)
    channels = [texture, texture + 0.3 * _field(rng, side, 2.0), _field(rng, side, 2.0)]
    features = FeatureMap(np.stack(channels).astype(np.float32) * mask, mask, (0, 1, 5), block=50)
    rates = np.exp(np.stack([0.8 * texture, 0.5 * slow], -1)) * mask[..., None]
    row, column = np.indices((side, side)).reshape(2, -1)
    xy_um = 30 + 100 * np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])
    xy_um = xy_um[(xy_um < side * 8 - 28).all(1)]
    bags = Bags.from_disks(grid, xy_um / grid.mpp, 27.5 / grid.mpp).within(mask)
    kept = np.asarray(bags.weights.sum(1)).ravel() > 20
    bags, xy_um = bags.take(kept), xy_um[kept]
    counts = rng.poisson(bags.weights @ rates.reshape(-1, len(GENES))).astype(np.float32)
    spots = Spots(xy_um, np.full(len(xy_um), 27.5), 100.0, counts)
    return Section(Problem(features, bags, spots, GENES), rates[mask])


def _field(rng: np.random.Generator, side: int, smoothness: float) -> NDArray[np.float64]:
    values = gaussian_filter(rng.normal(size=(side, side)), smoothness)
    return (values - values.mean()) / values.std()


@pytest.fixture(scope="session")
def section() -> Section:
    """Some hundred spots."""
    return make_section(120)


@pytest.fixture(scope="session")
def small() -> Problem:
    """A few spots."""
    return make_section(30).problem
