"""RMSE and SSIM against their definitions, and why they cannot be trusted alone."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from sphistex.metrics import published


@pytest.fixture
def section():
    rng = np.random.default_rng(0)
    mask = np.ones((24, 30), bool)
    mask[:5] = False
    return rng.gamma(2.0, 3.0, (24, 30, 3)) + 1, rng.gamma(2.0, 3.0, (24, 30, 3)) + 1, mask


def test_they_are_those_of_the_scaled_maps(section):
    predicted, truth, mask = section
    found = published(predicted, truth, mask, genes=["a", "b", "c"]).set_index("gene")
    for i, gene in enumerate("abc"):
        a, b = (
            np.where(mask, (x - x[mask].min()) / (x[mask].max() - x[mask].min()), 0)
            for x in (predicted[..., i], truth[..., i])
        )
        assert found.rmse[gene] == pytest.approx(np.sqrt(((a - b)[mask] ** 2).mean()))
        assert found.ssim[gene] == pytest.approx(structural_similarity(a, b, data_range=1))


def test_they_do_not_depend_on_the_unit_nor_on_what_lies_outside(section):
    predicted, truth, mask = section
    noisy = np.where(mask[..., None], predicted, 1e6)
    np.testing.assert_allclose(published(7 * noisy, truth, mask)[["rmse", "ssim"]],
                               published(predicted, truth, mask)[["rmse", "ssim"]])  # fmt: skip


def test_a_constant_map_is_nothing_also_where_the_tissue_is_not_all_of_it(section):
    _, truth, mask = section
    found = published(np.where(mask[..., None], 5.0, 0) * np.ones(3), truth, mask)
    scaled = (truth[mask] - truth[mask].min(0)) / np.ptp(truth[mask], axis=0)
    np.testing.assert_allclose(found.rmse, np.sqrt((scaled**2).mean(0)))


def test_a_constant_map_beats_a_good_one_where_the_truth_is_sparse():
    """The reason why nothing is chosen by them."""
    rng = np.random.default_rng(1)
    rate = np.kron(rng.gamma(0.5, 0.1, (12, 12)), np.ones((8, 8)))[..., None]
    truth, mask = rng.poisson(rate), np.ones((96, 96), bool)
    constant = published(np.ones_like(rate), truth, mask).iloc[0]
    assert constant.ssim > published(rate, truth, mask).iloc[0].ssim


def test_a_small_map_has_no_ssim():
    small = np.random.default_rng(0).random((5, 9, 1))
    found = published(small, small, np.ones((5, 9), bool)).iloc[0]
    assert found.rmse == 0
    assert np.isnan(found.ssim)
