"""Between the spots stands what they say together, and little where they say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sphistex.metrics import pearson
from sphistex.metrics.baselines import linear
from sphistex.nn.interpolation import Interpolation
from sphistex.nn.residuals import SmoothResiduals

XY = np.stack(np.meshgrid(np.arange(18), np.arange(18)), -1).reshape(-1, 2) * 100.0
PLACES = np.random.default_rng(1).uniform(0, 1700, (500, 2))


def counted(rate: NDArray) -> NDArray[np.float64]:
    return np.random.default_rng(2).poisson(rate).astype(float)


def test_noise_is_not_drawn() -> None:
    counts = counted(np.full((len(XY), 200), 5.0))
    drawn = Interpolation.fit(XY, counts)(PLACES).std(0)
    assert np.median(drawn) < 0.1 * np.median(linear(XY, counts, PLACES).std(0))
    assert (drawn > 0.5 * linear(XY, counts, PLACES).std(0)).mean() < 0.05


@pytest.mark.parametrize("side_um", [250.0, 400.0, 1000.0])
def test_it_is_behind_neither_of_its_parts_by_much(side_um: float) -> None:
    def field(xy: NDArray) -> NDArray[np.float64]:
        return 5 + 4 * np.sign(np.sin(np.pi * xy[:, :1] / side_um) * np.sin(np.pi * xy[:, 1:] / side_um))

    counts, truth = counted(field(XY)), field(PLACES)
    mean = counts.mean(0)
    parts = linear(XY, counts, PLACES), SmoothResiduals.fit(XY, counts - mean)(PLACES) + mean
    r = [float(pearson(part, truth)[0]) for part in (*parts, Interpolation.fit(XY, counts)(PLACES))]
    assert r[2] > min(r[:2])
    assert r[2] > max(r[:2]) - 0.04


def test_it_is_never_negative() -> None:
    counts = counted(np.exp(XY[:, :1] / 200 - 6))
    assert Interpolation.fit(XY, counts)(PLACES).min() >= 0


def test_no_gene_may_vary() -> None:
    assert Interpolation.fit(XY, np.full((len(XY), 2), 3.0))(PLACES).tolist() == [[3.0, 3.0]] * len(PLACES)


def test_on_the_lattice_it_is_the_same() -> None:
    counts = counted(5 + 4 * np.sin(XY / 300))
    drawn, inside = Interpolation.fit(XY, counts), np.random.default_rng(0).random((30, 40)) < 0.7
    row, column = np.nonzero(inside)
    places = (np.column_stack([column + 20, row + 50]) + 0.5) * 8.0
    found = drawn.on_lattice(slice(50, 80), slice(20, 60), 8.0, inside, slice(1, 2))
    np.testing.assert_allclose(found, drawn(places)[:, 1:], rtol=0.05)
