"""Covariances of spots and points are those of the field, and noise is left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from sphistex.bench.methods.interpolation import linear
from sphistex.bench.methods.kriging import DiskExponential, kriging

RADIUS = 27.5


def points_of(disk: NDArray, step: float = 2.0) -> NDArray:
    """A square lattice of points in a disk (x, y, radius), or its centre where the radius is 0."""
    if disk[2] == 0:
        return disk[None, :2]
    ticks = np.arange(-disk[2] + step / 2, disk[2], step)
    offset = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    return disk[:2] + offset[np.linalg.norm(offset, axis=1) <= disk[2]]


@pytest.mark.parametrize("length_um", [60.0, 240.0])
@pytest.mark.parametrize("radii", [(0.0, 0.0), (RADIUS, 0.0), (0.0, RADIUS), (RADIUS, RADIUS), (10.0, RADIUS)])
def test_covariances_are_means_over_the_disks(length_um: float, radii: tuple[float, float]) -> None:
    for distance in (0.0, 13.0, 40.0, 100.0, 700.0):
        a, b = np.array([3.0, 5.0, radii[0]]), np.array([3.0 + 0.6 * distance, 5.0 - 0.8 * distance, radii[1]])
        expected = np.exp(-cdist(points_of(a), points_of(b)) / length_um).mean()
        found = DiskExponential(length_um)(a[None], b[None])[0, 0]
        assert found == pytest.approx(expected, rel=0.005, abs=2e-4)


def test_points_and_disks_have_one_covariance() -> None:
    """A matrix of points and of means over disks has no negative eigenvalue, as that of any field."""
    rng = np.random.default_rng(0)
    mixed = np.column_stack([rng.uniform(0, 500, (150, 2)), rng.choice([0.0, RADIUS], 150)])
    kernel = DiskExponential(120.0)
    covariance = kernel(mixed)
    np.testing.assert_allclose(covariance, covariance.T)
    np.testing.assert_allclose(np.diag(covariance), kernel.diag(mixed))
    assert np.linalg.eigvalsh(covariance).min() > -0.01


def test_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="eval_gradient=True.*optimizer=None"):
        DiskExponential(60.0)(np.zeros((1, 3)), eval_gradient=True)


def test_noise_of_the_spots_is_left_behind(section: Any) -> None:
    def error(found: NDArray) -> float:
        return float(np.sqrt(((found - section.rates)[:, 1] ** 2).mean()))

    assert error(kriging(section.problem)) < 0.9 * error(linear(section.problem))


def test_a_gene_that_is_noise_gets_about_its_mean(section: Any) -> None:
    counts = np.random.default_rng(0).poisson(20, section.problem.spots.counts.shape).astype(np.float32)
    problem = replace(section.problem, spots=replace(section.problem.spots, counts=counts))
    assert (kriging(problem).std(0) < 0.3 * linear(problem).std(0)).all()
