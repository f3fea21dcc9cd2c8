"""What looks alike is near."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sphistex.bench.methods import neighbourhood
from sphistex.nn import FeatureMap


def test_superpixels_between_two_tissues_take_after_their_own(section: Any) -> None:
    """Stripes thinner than spots are apart: in each, expression is that of the spots that lie in such stripes."""
    problem = section.problem
    stripe = np.broadcast_to((np.arange(problem.mask.shape[1]) // 15) % 2, problem.mask.shape)
    features = FeatureMap(stripe[None].astype(np.float32), problem.mask)
    rates = (1.0 + 4.0 * stripe)[..., None]
    counts = (problem.bags.weights @ rates.reshape(-1, 1)).astype(np.float32)
    striped = replace(problem, features=features, spots=replace(problem.spots, counts=counts), genes=["stripe"])
    found = neighbourhood.neighbourhood(striped)
    inside = stripe[problem.mask] == 1
    assert found[inside].mean() > 3 * found[~inside].mean()


def test_without_the_image_only_distance_counts(section: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_image = neighbourhood.neighbourhood(section.problem)
    monkeypatch.setattr(neighbourhood, "IMAGE_TO_SPACE", 0.0)
    without = neighbourhood.neighbourhood(section.problem)
    of_image = [np.corrcoef(m[:, 0], section.rates[:, 0])[0, 1] for m in (without, with_image)]
    assert of_image[1] > of_image[0] + 0.1
