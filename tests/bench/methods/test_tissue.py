"""Blocks together are the tissue, and components what most of the features vary by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sphistex.bench.methods._tissue import components, tissue_blocks


def test_blocks_hold_every_superpixel_of_the_tissue_once(section: Any) -> None:
    features = replace(section.problem.features, block=17)
    out = np.full((features.mask.sum(), features.dim), np.nan, dtype=np.float32)
    for place, vectors in tissue_blocks(features):
        assert np.isnan(out[place]).all()
        out[place] = vectors
    np.testing.assert_allclose(out, features.gather(np.flatnonzero(features.mask)), rtol=1e-4, atol=1e-5)


def test_components_are_uncorrelated_and_the_first_is_the_largest(section: Any) -> None:
    found = components(section.problem, 3)
    covariance = np.cov(found.T)
    assert 0.9 < covariance[0, 0] < 1.1
    assert (np.diff(np.diag(covariance)) < 0).all()
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.05


def test_there_are_no_more_components_than_features(section: Any) -> None:
    assert components(section.problem, 100).shape == (section.problem.mask.sum(), 9)
