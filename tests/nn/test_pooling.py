"""Places that hold enough counts to be looked at on their own."""

from __future__ import annotations

import numpy as np
import pytest

from sphistex.nn.pooling import MAX_PLACES, pooling


def lattice(rows: int, columns: int, pitch_um: float) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) * pitch_um


def test_spots_stay_as_they_are() -> None:
    matrix, pitch_um = pooling(lattice(4, 5, 100.0), 100.0)
    np.testing.assert_array_equal(matrix.toarray(), np.eye(20))
    assert pitch_um == 100.0


@pytest.mark.parametrize("bin_um", [8.0, 16.0])
def test_bins_are_pooled_into_squares_of_about_50_um(bin_um: float) -> None:
    xy = lattice(60, 40, bin_um) + 3.7
    matrix, pitch_um = pooling(xy, bin_um)
    assert 50 <= pitch_um < 50 + bin_um
    assert matrix.max() == 1
    assert (matrix.sum(0) <= 1).all()  # no bin is counted twice
    centres = np.asarray(matrix @ xy) / np.asarray(matrix.sum(1))
    for place, members in zip(centres, matrix.toarray().astype(bool), strict=True):
        assert np.abs(xy[members] - place).max() <= pitch_um / 2


def test_squares_with_few_bins_are_left_out() -> None:
    xy = np.concatenate([lattice(21, 21, 8.0), [[400.0, 400.0]]])
    matrix, _ = pooling(xy, 8.0)
    assert matrix.shape[0] == 9
    assert matrix[:, -1].nnz == 0


def test_the_number_of_places_is_bounded() -> None:
    xy = lattice(700, 700, 8.0)
    matrix, pitch_um = pooling(xy, 8.0)
    assert matrix.shape[0] <= MAX_PLACES
    assert pitch_um > 50
    assert matrix.sum() > 0.95 * len(xy)
