"""Superpixels are linked with those around them."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from sphistex.bench.methods.graph import _links


def test_links_are_means_over_the_eight_around() -> None:
    mask = np.random.default_rng(0).random((9, 7)) < 0.7
    place = np.argwhere(mask)
    near = cdist(place, place, "chebyshev") <= 1
    np.testing.assert_allclose(_links(mask).to_dense().numpy(), near / near.sum(1, keepdims=True), rtol=1e-6)
