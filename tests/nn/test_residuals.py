"""Smoothed residuals: signal kept, noise dropped, and the numbers of an independent Gaussian process."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from sphistex.nn.residuals import LENGTHS_UM, SIGNAL_TO_NOISE, SmoothResiduals, left_out


@pytest.fixture(scope="module")
def xy_um() -> NDArray[np.float64]:
    """Spots of a hexagonal lattice of 100 µm."""
    row, column = np.indices((18, 16)).reshape(2, -1)
    return 100.0 * np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])


def field(xy_um: NDArray) -> NDArray[np.float64]:
    x, y = xy_um.T / 300
    return np.column_stack([np.sin(x), np.cos(y), np.sin(x + y)])


def test_a_smooth_field_is_recovered_where_nothing_was_measured(xy_um: NDArray) -> None:
    rng = np.random.default_rng(0)
    noisy = field(xy_um) + rng.normal(0, 0.5, (len(xy_um), 3))
    smooth = SmoothResiduals.fit(xy_um, noisy)
    places = rng.uniform(xy_um.min(0), xy_um.max(0), (500, 2))
    found, truth = smooth(places), field(places)
    for gene in range(3):
        assert np.corrcoef(found[:, gene], truth[:, gene])[0, 1] > 0.9
    assert (np.abs(smooth(xy_um) - field(xy_um)).mean(0) < 0.5 * np.abs(noisy - field(xy_um)).mean(0)).all()


def test_noise_gives_nothing(xy_um: NDArray) -> None:
    noise = np.random.default_rng(0).normal(size=(len(xy_um), 200))
    smooth = SmoothResiduals.fit(xy_um, noise)(xy_um)
    assert smooth.var() < 0.02 * noise.var()
    assert (smooth.var(0) == 0).mean() > 0.3, "many genes get exactly nothing"


def test_noisy_residuals_are_not_passed_through(xy_um: NDArray) -> None:
    noise = np.random.default_rng(0).normal(0, 1.0, (len(xy_um), 3))
    noisy = field(xy_um) + noise
    left = noisy - SmoothResiduals.fit(xy_um, noisy)(xy_um)
    assert 0.6 < left.var() / noise.var() < 1.2


def test_it_is_a_gaussian_process_with_a_nugget(xy_um: NDArray) -> None:
    rng = np.random.default_rng(1)
    noisy = field(xy_um) + rng.normal(0, 0.4, (len(xy_um), 3))
    places = rng.uniform(0, 1500, (40, 2))
    smooth = SmoothResiduals.fit(xy_um, noisy)
    assert (smooth.signal_to_noise > 0).all()
    for gene in range(3):
        kernel = ConstantKernel(smooth.signal_to_noise[gene]) * Matern(smooth.length_um[gene], nu=0.5)
        reference = GaussianProcessRegressor(kernel, alpha=1.0, optimizer=None).fit(xy_um, noisy[:, gene])
        np.testing.assert_allclose(smooth(places)[:, gene], reference.predict(places), atol=1e-6)


def test_length_and_nugget_have_the_largest_marginal_likelihood(xy_um: NDArray) -> None:
    rng = np.random.default_rng(2)
    noisy = field(xy_um)[:, :1] + rng.normal(0, 1.5, (len(xy_um), 1))
    smooth = SmoothResiduals.fit(xy_um, noisy)
    likelihood = {}
    for length in LENGTHS_UM:
        for ratio in SIGNAL_TO_NOISE[1:]:
            shape = ratio * Matern(length, nu=0.5)(xy_um) + np.eye(len(xy_um))
            noise = float(noisy[:, 0] @ np.linalg.solve(shape, noisy[:, 0])) / len(
                xy_um
            )  # its best value, in closed form
            kernel = ConstantKernel(ratio * noise) * Matern(length, nu=0.5) + WhiteKernel(noise)
            process = GaussianProcessRegressor(kernel, alpha=0, optimizer=None).fit(xy_um, noisy[:, 0])
            likelihood[length, ratio] = process.log_marginal_likelihood_value_
    assert (smooth.length_um[0], smooth.signal_to_noise[0]) == max(likelihood, key=likelihood.__getitem__)


def test_genes_do_not_depend_on_each_other(xy_um: NDArray) -> None:
    noisy = field(xy_um) + np.random.default_rng(3).normal(0, 0.5, (len(xy_um), 3))
    together = SmoothResiduals.fit(xy_um, noisy)(xy_um)
    alone = SmoothResiduals.fit(xy_um, noisy[:, [2]])(xy_um)
    np.testing.assert_allclose(together[:, [2]], alone, atol=1e-9)


def test_the_map_is_the_same_in_parts(xy_um: NDArray) -> None:
    """A map is computed block by block: no border may show."""
    rng = np.random.default_rng(4)
    n_genes = len(LENGTHS_UM)
    coefficients = rng.uniform(0, 1, (len(xy_um), n_genes))  # of one sign: what is cut off does not cancel
    smooth = SmoothResiduals(xy_um, coefficients, np.array(LENGTHS_UM), np.ones(n_genes), np.ones(n_genes))
    places = rng.uniform(0, 1500, (2000, 2))
    parts = np.zeros((2000, n_genes))
    for low in range(0, 1500, 128):
        inside = (places[:, 0] >= low) & (places[:, 0] < low + 128)
        parts[inside] = smooth(places[inside])
    np.testing.assert_allclose(parts, smooth(places), rtol=1e-3)


def test_a_large_section_is_solved_in_parts_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    xy_um = rng.uniform(0, [4000, 2500], (1000, 2))
    noisy = 1 + field(xy_um) + rng.normal(0, [0.5, 1, 2], (len(xy_um), 3))
    places = rng.uniform(xy_um.min(0), xy_um.max(0), (500, 2))
    monkeypatch.setattr("sphistex.nn.residuals._MAX_SPOTS_FOR_CHOICE", 300)
    whole = SmoothResiduals.fit(xy_um, noisy)
    monkeypatch.setattr("sphistex.nn.residuals._MAX_SPOTS_TOGETHER", 100)
    parts = SmoothResiduals.fit(xy_um, noisy)
    apart = np.abs(parts(places) - whole(places)) / whole(places).std(0)
    assert apart.max() > 0, "the parts are solved by themselves"
    assert np.sqrt((apart**2).mean()) < 0.005 and apart.max() < 0.03


def test_far_from_all_spots_nothing_is_added(xy_um: NDArray) -> None:
    smooth = SmoothResiduals.fit(xy_um, field(xy_um))
    np.testing.assert_allclose(smooth(xy_um + 20000), 0, atol=1e-9)


def test_what_is_left_out_is_said_by_the_others(xy_um: NDArray) -> None:
    """It is a fit without the spot, to the others."""
    noisy = field(xy_um) + np.random.default_rng(0).normal(0, 0.5, (len(xy_um), 3))
    smooth = SmoothResiduals.fit(xy_um, noisy)
    spots = np.array([0, 100, len(xy_um) - 1])
    found = left_out(xy_um, noisy, spots)
    for row, spot in zip(found, spots, strict=True):
        others = np.arange(len(xy_um)) != spot
        for gene in range(3):
            length, ratio = smooth.length_um[gene], smooth.signal_to_noise[gene]
            kernel = ratio * Matern(length, nu=0.5, length_scale_bounds="fixed")
            process = GaussianProcessRegressor(kernel, alpha=1.0, optimizer=None).fit(
                xy_um[others], noisy[others, gene]
            )
            assert row[gene] == pytest.approx(process.predict(xy_um[[spot]])[0], abs=0.03)


@pytest.mark.parametrize("length_um", LENGTHS_UM)
def test_on_the_lattice_it_is_the_same_field(xy_um: NDArray, length_um: float) -> None:
    coefficients = np.random.default_rng(0).normal(size=(len(xy_um), 3))
    smooth = SmoothResiduals(xy_um, coefficients, np.full(3, length_um), np.ones(3), np.ones(3))
    rows, columns, pitch_um = slice(37, 101), slice(5, 80), 8.0
    places = np.stack(np.meshgrid(np.arange(5, 80), np.arange(37, 101)), -1).reshape(-1, 2)
    exact = smooth((places + 0.5) * pitch_um).reshape(64, 75, 3)
    found = smooth.on_lattice(rows, columns, pitch_um)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.998
    one = smooth.on_lattice(rows, columns, pitch_um, slice(1, 2))
    np.testing.assert_allclose(one, found[..., 1:2], atol=1e-5)


def test_the_lattice_does_not_depend_on_the_block(xy_um: NDArray) -> None:
    smooth = SmoothResiduals.fit(xy_um, field(xy_um))
    whole = smooth.on_lattice(slice(0, 90), slice(0, 80), 8.0)
    part = smooth.on_lattice(slice(17, 61), slice(33, 80), 8.0)
    np.testing.assert_allclose(part, whole[17:61, 33:], atol=1e-5)


def test_genes_without_a_signal_are_nothing_on_the_lattice(xy_um: NDArray) -> None:
    smooth = SmoothResiduals(xy_um, np.ones((len(xy_um), 2)), np.full(2, 120.0), np.array([0.0, 1.0]), np.zeros(2))
    found = smooth.on_lattice(slice(0, 9), slice(0, 9), 8.0)
    assert not found[..., 0].any()
    assert found[..., 1].all()
