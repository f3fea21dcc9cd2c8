"""Coverage against intervals whose coverage is known."""

import numpy as np
import pytest

from sphistex.metrics import coverage


def test_it_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    mean = rng.normal(0, 10, (20_000, 2))
    found = coverage(mean - 1.645, mean + 1.645, mean + rng.normal(size=mean.shape), mean)
    assert found.coverage[0] == pytest.approx(0.9, abs=0.01)
    assert found.coverage[1:].between(0.87, 0.93).all()
    assert found.n[1:].sum() == found.n[0] == mean.size


def test_bins_are_by_what_is_expected():
    expected = np.arange(100.0)[:, None]
    truth = np.where(expected < 50, expected, -1)
    found = coverage(expected, expected, truth, expected, n_bins=4).set_index("bin")
    assert found.coverage.tolist() == [0.5, 1, 1, 0, 0]
    assert found.expected[1] < found.expected[4]
