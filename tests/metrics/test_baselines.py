"""The baselines do what their names say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from sphistex.metrics import baselines


@pytest.fixture
def spots() -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(6) * 100.0, np.arange(5) * 100.0), -1).reshape(-1, 2)


@pytest.mark.parametrize("method", [baselines.nearest, baselines.linear])
def test_spots_keep_their_own_values(method, spots):
    values = np.random.default_rng(0).poisson(5.0, (len(spots), 3))
    np.testing.assert_allclose(method(spots, values, spots), values)


def test_linear_reproduces_planes_inside_and_takes_the_nearest_outside(spots):
    rng = np.random.default_rng(0)
    slopes, places = rng.normal(size=(2, 3)), rng.uniform((0, 0), (500, 400), (50, 2))
    np.testing.assert_allclose(baselines.linear(spots, spots @ slopes, places), places @ slopes, atol=1e-9)
    outside = np.array([[-50.0, 120.0], [530.0, 470.0]])
    np.testing.assert_allclose(baselines.linear(spots, spots @ slopes, outside), spots[[6, -1]] @ slopes)


def test_nearest_is_the_nearest(spots):
    values = np.arange(len(spots), dtype=float)[:, None]
    places = np.random.default_rng(1).uniform((-80, -80), (580, 480), (200, 2))
    expected = np.linalg.norm(places[:, None] - spots, axis=-1).argmin(1)
    np.testing.assert_array_equal(baselines.nearest(spots, values, places).ravel(), expected)


def test_threads_that_share_it_from_the_start_get_what_one_gets():
    """SciPy's triangles are not safe in threads before their transform has been made: 7 of 10 runs were wrong."""
    rng = np.random.default_rng(0)
    xy, places = rng.uniform(0, 1000, (300, 2)), rng.uniform(0, 1000, (100_000, 2))
    expected = baselines.linear_weights(xy)(places)
    together = Barrier(4)

    def in_thread(weights):
        together.wait()
        return weights(places)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            for found in pool.map(in_thread, [baselines.linear_weights(xy)] * 4):
                assert abs(found - expected).max() == 0
