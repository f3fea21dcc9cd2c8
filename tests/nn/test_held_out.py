"""Left-out spots are predicted without being seen, and decide how much of the image a gene's map holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sphistex.nn.held_out import HeldOut, predict_held_out
from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import PoissonCounts
from sphistex.nn.training import BagData, folds

N_BAGS, N_GENES = 40, 3


def untrained(counts: NDArray, own: float = 0.0) -> tuple[HISTEX, PoissonCounts, BagData]:
    """A network, and bags of four superpixels whose nearest spot has tokens of ``own``."""
    torch.manual_seed(0)
    tokens = torch.randn(N_BAGS, 5, 6)
    tokens[:, 0] += own
    data = BagData(
        features=torch.randn(1, 4 * N_BAGS, 8),
        index=torch.arange(4 * N_BAGS).reshape(N_BAGS, 4),
        weight=torch.ones(N_BAGS, 4),
        counts=torch.tensor(counts, dtype=torch.float32),
        spots=tokens,
        spot_mask=torch.ones(N_BAGS, 5, dtype=torch.bool),
    )
    network = HISTEX(3, 8, 6, N_GENES, d=8, heads=2, layers=1, residual=True).eval()
    return network, PoissonCounts(torch.ones(N_BAGS, N_GENES), data.weight.sum(1)), data


def left_out(counts: NDArray, own: float = 0.0, *, residuals: bool = False) -> HeldOut:
    held_out = folds(N_BAGS, 3).numpy()
    xy_um = np.random.default_rng(0).uniform(0, 1000, (N_BAGS, 2))
    return predict_held_out(*untrained(counts, own), held_out, xy_um, residuals=residuals, seed=0)


def test_every_spot_that_a_model_left_out_is_predicted() -> None:
    counts = np.random.default_rng(0).poisson(5, (N_BAGS, N_GENES))
    found = left_out(counts)
    unseen = folds(N_BAGS, 3).numpy().any(0)
    np.testing.assert_array_equal(found.counts, counts[unseen])
    np.testing.assert_array_equal(found.area, 4)


def test_what_a_spot_measured_does_not_reach_its_own_prediction() -> None:
    counts = np.random.default_rng(0).poisson(5, (N_BAGS, N_GENES))
    np.testing.assert_array_equal(left_out(counts).expected, left_out(10 * counts, own=3.0).expected)


def test_residuals_are_those_of_the_other_spots() -> None:
    counts = np.full((N_BAGS, N_GENES), 20.0)
    found = left_out(counts, residuals=True)
    np.testing.assert_allclose(found.interpolated, 20, rtol=1e-5)
    alone = np.abs(left_out(counts).expected - 20).mean()
    assert np.abs(found.expected - 20).mean() < alone, "what all spots have in common is put back"


@pytest.fixture
def rates() -> NDArray[np.float64]:
    return np.random.default_rng(1).gamma(2.0, 5.0, (300, N_GENES))


def judged(rates: NDArray, expected: NDArray, interpolated: NDArray) -> HeldOut:
    counts = np.random.default_rng(2).poisson(rates).astype(float)
    return HeldOut(np.ones(len(rates)), counts, expected, interpolated)


def worse(rates: NDArray) -> NDArray[np.float64]:
    return rates * np.random.default_rng(3).gamma(2.0, 0.5, rates.shape)


def test_a_map_holds_as_much_of_the_image_as_helps(rates: NDArray) -> None:
    assert judged(rates, rates, worse(rates)).image_share().min() > 0.9
    found = judged(rates, worse(rates), rates)
    share = found.image_share()
    assert share.max() < 0.1
    np.testing.assert_allclose(found.mixed(share).expected, share * worse(rates) + (1 - share) * rates)


def test_genes_differ_in_what_the_image_shows_of_them(rates: NDArray) -> None:
    shown = np.arange(N_GENES) > 0
    share = judged(rates, np.where(shown, rates, worse(rates)), np.where(shown, worse(rates), rates)).image_share()
    assert share[0] < 0.2
    assert share[1:].min() > 0.8


def test_spots_of_all_genes_tell_what_those_of_one_cannot() -> None:
    """One gene's few counts are as likely under many mixes; a hundred such genes show which is right."""
    rates = np.random.default_rng(1).gamma(2.0, 0.5, (60, 100))
    found = judged(rates, rates, worse(rates))
    alone = [
        HeldOut(found.area, *(x[:, [i]] for x in (found.counts, found.expected, found.interpolated))).image_share()
        for i in range(100)
    ]
    assert 1 - found.image_share().mean() < 0.7 * (1 - np.mean(alone))


def test_the_most_abundant_gene_does_not_speak_for_all(rates: NDArray) -> None:
    """Of 51 genes the image shows 50; the other has a thousand times their counts, and far more spread than counts."""
    rates = np.tile(rates, 17)
    abundant = np.arange(rates.shape[1]) == 0
    noisy = np.where(abundant, 1000 * worse(rates), rates)
    found = judged(
        noisy, np.where(abundant, 1000 * worse(rates)[::-1], rates), np.where(abundant, 1000 * rates, worse(rates))
    )
    assert found.image_share()[1:].min() > 0.8
