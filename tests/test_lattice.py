"""Enhanced spots (eq. 1–3): hand-computed values on both lattices, planes, and sections with missing spots."""

import numpy as np
import pytest

from sphistex.lattice import enhancement_matrix


def hexagonal(rows, columns):
    """Visium lattice with pitch 1: every second row is shifted by half a pitch."""
    return np.array([(j + 0.5 * (i % 2), i * np.sqrt(3) / 2) for i in range(rows) for j in range(columns)])


def square(rows, columns):
    return np.array([(j, i) for i in range(rows) for j in range(columns)], dtype=float)


def value_at(xy, values, place):
    hits = np.flatnonzero(np.linalg.norm(xy - np.array(place), axis=1) < 1e-9)
    assert len(hits) == 1, f"{len(hits)} enhanced spots at {place}"
    return values[hits[0]]


def test_square_3_by_3_by_hand():
    xy, counts = square(3, 3), np.arange(9.0) ** 2  # rows 0 1 4 / 9 16 25 / 36 49 64
    matrix = enhancement_matrix(xy, 1.0)
    places, values = matrix @ xy, matrix @ counts
    assert len(places) == 25  # a full 5 × 5 lattice
    assert value_at(places, values, (0.5, 0)) == pytest.approx((0 + 1) / 2)
    assert value_at(places, values, (2, 1.5)) == pytest.approx((25 + 64) / 2)
    assert value_at(places, values, (0.5, 0.5)) == pytest.approx((0 + 1 + 9 + 16) / 4)
    assert value_at(places, values, (1.5, 1.5)) == pytest.approx((16 + 25 + 49 + 64) / 4)
    np.testing.assert_allclose(values[:9], counts)


def test_hexagonal_3_by_3_by_hand():
    xy, counts = hexagonal(3, 3), np.arange(9.0) ** 2
    matrix = enhancement_matrix(xy, 1.0)
    places, values = matrix @ xy, matrix @ counts
    # within rows 3 × 2 pairs; between two rows each of the 3 lower spots touches up to 2 upper ones: 5 pairs, twice
    assert len(places) == 9 + 6 + 10
    height = np.sqrt(3) / 2
    assert value_at(places, values, (0.5, 0)) == pytest.approx((0 + 1) / 2)  # spots 0, 1
    assert value_at(places, values, (0.25, height / 2)) == pytest.approx((0 + 9) / 2)  # spots 0, 3
    assert value_at(places, values, (0.75, height / 2)) == pytest.approx((1 + 9) / 2)  # spots 1, 3
    assert value_at(places, values, (1.25, 1.5 * height)) == pytest.approx((16 + 49) / 2)  # spots 4, 7


@pytest.mark.parametrize("lattice", [hexagonal, square])
def test_a_plane_is_reproduced_exactly(lattice):
    rng = np.random.default_rng(0)
    angle = 0.3
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    xy = 100 * lattice(7, 8) @ rotation.T
    xy = xy[rng.random(len(xy)) > 0.2]  # missing spots
    matrix = enhancement_matrix(xy, 100.0)
    plane = 3.0 + xy @ np.array([0.2, -0.7])
    np.testing.assert_allclose(matrix @ plane, 3.0 + (matrix @ xy) @ np.array([0.2, -0.7]))


@pytest.mark.parametrize("lattice", [hexagonal, square])
def test_about_four_times_as_many(lattice):
    xy = lattice(40, 40)
    assert 3.8 < enhancement_matrix(xy, 1.0).shape[0] / len(xy) < 4.0


@pytest.mark.parametrize("lattice", [hexagonal, square])
def test_nothing_is_interpolated_over_a_gap(lattice):
    xy = lattice(5, 5)
    gap = xy[12]
    places = enhancement_matrix(np.delete(xy, 12, axis=0), 1.0) @ np.delete(xy, 12, axis=0)
    assert np.linalg.norm(places - gap, axis=1).min() > 0.49
    full = enhancement_matrix(xy, 1.0) @ xy
    assert (np.linalg.norm(full - gap, axis=1) < 0.75).sum() > 1


def test_printed_spots_a_little_off_still_have_neighbours():
    xy = square(6, 6) + np.random.default_rng(0).normal(0, 0.03, (36, 2))
    assert enhancement_matrix(xy, 1.0).shape[0] == 121
