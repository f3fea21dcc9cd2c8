"""What is done some genes at a time is the same as all at once."""

from __future__ import annotations

import numpy as np
import pytest

from sphistex import _parts
from sphistex.calibration import Calibration
from sphistex.metrics import explained
from sphistex.nn.held_out import HeldOut
from sphistex.nn.residuals import SmoothResiduals

N_SPOTS, N_GENES = 80, 12


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 5.0, (N_SPOTS, N_GENES))
    counts = rng.poisson(rates).astype(np.float32)
    noisy = [(rates * rng.gamma(5, 0.2, rates.shape)).astype(np.float32) for _ in range(2)]
    return HeldOut(np.full(N_SPOTS, 40.0), counts, *noisy)


def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "_MAX_NUMBERS", 5 * N_SPOTS)
    assert len(list(_parts.gene_parts(N_SPOTS, N_GENES))) == 3


def test_judgement_of_genes(held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged() -> tuple[np.ndarray, np.ndarray]:
        names = [f"g{i}" for i in range(N_GENES)]
        table = explained(held_out.expected, held_out.interpolated, held_out.counts, genes=names)
        return held_out.image_share(), table[["pearson", "interpolation"]].to_numpy()

    whole = judged()
    in_parts(monkeypatch)
    for found, expected in zip(judged(), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_calibration(held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Calibration.learn(held_out, 8.0)
    in_parts(monkeypatch)
    found = Calibration.learn(held_out, 8.0)
    np.testing.assert_allclose(found.variance, whole.variance)
    np.testing.assert_allclose(found.mean, whole.mean)
    np.testing.assert_allclose(found.coverage, whole.coverage, atol=0.05)  # ranks are drawn at random


def test_residuals(held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    xy_um = np.random.default_rng(1).uniform(0, 900, (N_SPOTS, 2))
    residuals = np.sin(xy_um[:, :1] / 200) * np.arange(N_GENES) + np.random.default_rng(2).normal(
        size=(N_SPOTS, N_GENES)
    )
    whole = SmoothResiduals.fit(xy_um, residuals)
    in_parts(monkeypatch)
    found = SmoothResiduals.fit(xy_um, residuals)
    np.testing.assert_allclose(found.coefficients, whole.coefficients, atol=1e-10)
    np.testing.assert_array_equal(found.length_um, whole.length_um)
