"""Intervals hold as often as they say, on counts and on what is behind them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from sphistex.calibration import MIN_SPOTS, Calibration
from sphistex.metrics import coverage
from sphistex.nn.held_out import HeldOut

AREA = 37.0
# Relative variance of the error at spots, and mean counts per spot, of each gene.
VARIANCE = np.array([0.1, 0.5, 0.5, 1.0])
MEAN = np.array([40.0, 8.0, 1.5, 8.0])


def drawn(n: int, seed: int, *, unseen: float = 1.0) -> tuple[NDArray, NDArray, NDArray]:
    """Predictions of spots, the expression behind them and counts, (n, n_genes), as the model says they are."""
    rng = np.random.default_rng(seed)
    expected = MEAN * rng.gamma(2.0, 0.5, (n, len(MEAN)))
    variance = VARIANCE / unseen * (3 * MEAN * expected + expected**2) / 4
    expression = rng.gamma(expected**2 / variance, variance / expected)
    return expected, expression, rng.poisson(expression).astype(float)


def held_out(n: int, seed: int = 0) -> HeldOut:
    expected, _, counts = drawn(n, seed)
    return HeldOut(np.full(n, AREA), counts, expected, expected)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.learn(held_out(800), 8.0)


def test_mean_and_error_are_learnt(calibration: Calibration) -> None:
    np.testing.assert_allclose(calibration.mean * AREA, MEAN, rtol=0.15)
    np.testing.assert_allclose(calibration.variance, VARIANCE, rtol=0.35)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_counts_hold_as_often_as_they_say(calibration: Calibration, level: float) -> None:
    expected, _, counts = drawn(4000, 1, unseen=1.3)  # on the map the error is smaller than at left-out spots
    lower, upper = calibration.count_interval(expected, np.full(len(expected), AREA), level)
    found = coverage(lower, upper, counts, expected)
    assert found.coverage[0] == pytest.approx(level, abs=0.03)
    # where next to nothing is expected, zero alone holds more often than half the time
    assert found.coverage[2:].between(level - 0.1, level + 0.1).all()


def test_intervals_of_the_expression_hold_as_often_as_they_say(calibration: Calibration) -> None:
    expected, expression, _ = drawn(4000, 2, unseen=1.3)
    lower, upper = calibration.expression_interval(expected, np.full(len(expected), AREA), 0.9)
    assert coverage(lower, upper, expression, expected).coverage[0] == pytest.approx(0.9, abs=0.03)


def test_a_probability_is_the_share_of_the_places_that_are_above(calibration: Calibration) -> None:
    expected, expression, _ = drawn(8000, 3, unseen=1.3)
    found = calibration.probability_above(expected, np.full(len(expected), AREA), MEAN)
    for low in np.arange(0, 1, 0.2):
        among = (found >= low) & (found < low + 0.2)
        assert (expression > MEAN)[among].mean() == pytest.approx(found[among].mean(), abs=0.06)


def test_where_the_errors_are_of_another_kind_the_held_out_counts_correct_the_level() -> None:
    rng = np.random.default_rng(0)
    expected = np.full((3000, 1), 50.0)
    # all errors are of one size: a negative binomial of the same variance has longer tails
    counts = 50.0 + 15.0 * rng.choice([-1.0, 1.0], (3000, 1))
    calibration = Calibration.learn(HeldOut(np.full(3000, AREA), counts, expected, expected), 8.0)
    assert calibration.coverage[180] < 0.85, "the central interval of 0.85 holds 90 % of such counts already"


def test_wider_areas_are_surer_and_rarer_genes_are_not(calibration: Calibration) -> None:
    narrow, wide = (calibration.error_variance(MEAN[None] * s / AREA, np.array([s])) for s in (4.0, 64.0))
    assert (wide / 64**2 < narrow / 4**2).all()


def test_a_gene_that_is_never_counted_has_an_interval_of_zero() -> None:
    nothing = np.zeros((60, 1))
    calibration = Calibration.learn(HeldOut(np.full(60, AREA), nothing, nothing, nothing), 8.0)
    lower, upper = calibration.count_interval(np.zeros((5, 1)), np.full(5, 16.0), 0.9)
    assert not lower.any()
    assert not upper.any()


def test_a_map_of_signal_is_reliable_and_one_of_error_is_not(calibration: Calibration) -> None:
    rng = np.random.default_rng(0)
    area = np.full(1000, AREA)
    strong = calibration.reliability(MEAN * rng.gamma(0.5, 2.0, (1000, 4)), area)
    flat = calibration.reliability(MEAN * rng.gamma(100.0, 0.01, (1000, 4)), area)
    assert (strong > 0.5).all()
    assert (flat < 0.2).all()


def test_too_few_spots_are_refused() -> None:
    with pytest.raises(ValueError, match=str(MIN_SPOTS)):
        Calibration.learn(held_out(MIN_SPOTS - 1), 8.0)


def test_it_survives_json(calibration: Calibration) -> None:
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    np.testing.assert_array_equal(again.variance, calibration.variance)
    assert again.side_um == calibration.side_um
