"""Borders that are there are found wherever they lie, and spots that do not add up."""

import numpy as np
import pytest
from scipy import sparse
from scipy.ndimage import gaussian_filter

from sphistex.metrics import border_score, spot_error

MASK = np.ones((64, 80), bool)
MASK[:10, :20] = False


def smooth(seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([gaussian_filter(rng.random((64, 80)), 2) for _ in range(40)], axis=-1)


def test_a_smooth_map_has_none():
    assert border_score(smooth(), MASK, 8) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shift", [0, 3, 7])
@pytest.mark.parametrize("axis", [0, 1])
def test_tiles_of_different_level_show_wherever_they_begin(shift, axis):
    values = smooth()
    tile = (np.arange(values.shape[axis]) + shift) // 8
    level = 0.05 * np.random.default_rng(1).random(tile.max() + 1)[tile]
    stepped = values + (level[:, None, None] if axis == 0 else level[None, :, None])
    assert border_score(stepped, MASK, 8) > 1.5
    assert border_score(stepped, MASK, 5) < border_score(stepped, MASK, 8), "borders of another period"


def test_what_lies_outside_the_tissue_is_no_border():
    values = np.where(MASK[..., None], smooth(), 1e3)
    assert border_score(values, MASK, 8) == pytest.approx(border_score(smooth(), MASK, 8))


def test_a_period_without_meaning_is_refused():
    with pytest.raises(ValueError, match="period=64"):
        border_score(smooth(), MASK, 64)


def test_spots_that_add_up_have_no_error_and_others_the_relative_one():
    values, rng = smooth() * MASK[..., None], np.random.default_rng(2)
    weights = sparse.random(30, MASK.size, 0.02, random_state=rng, format="csr")
    sums = weights @ values.reshape(MASK.size, -1)
    genes = [f"g{i}" for i in range(40)]
    assert spot_error(values, MASK, weights, sums, genes=genes).spot_error.max() < 1e-9
    off = spot_error(1.25 * values, MASK, weights, sums, genes=genes).set_index("gene").spot_error
    np.testing.assert_allclose(off.to_numpy(), 0.25)
    assert list(off.index) == genes
