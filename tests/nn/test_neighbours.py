"""What a bag sees of the spots around it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial.distance import cdist

from sphistex.lattice import enhancement_matrix
from sphistex.nn.neighbours import Neighbours, Positions

PITCH_UM = 100.0
K = 6


def lattice(kind: str, n: int = 8) -> NDArray[np.float64]:
    row, column = np.indices((n, n)).reshape(2, -1)
    if kind == "square":
        return PITCH_UM * np.column_stack([column, row]).astype(float)
    return PITCH_UM * np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])


def nearest(centres: NDArray, xy_um: NDArray, pitch_um: float | None = PITCH_UM) -> Neighbours:
    profiles = np.zeros((len(xy_um), 0), dtype=np.float32)
    return Positions(xy_um, sparse.identity(len(xy_um), format="csr"), profiles, K, pitch_um).nearest(centres)


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
@pytest.mark.parametrize("enhanced", [False, True])
def test_the_nearest_positions_are_seen_nearest_first(kind: str, enhanced: bool) -> None:
    xy = lattice(kind)
    if enhanced:
        xy = enhancement_matrix(xy, PITCH_UM) @ xy
    centres = np.random.default_rng(0).uniform(0, 600, (50, 2))
    index = nearest(centres, xy).index
    distance = cdist(centres, xy)
    np.testing.assert_allclose(np.take_along_axis(distance, index, axis=1), np.sort(distance, axis=1)[:, :K])


def test_a_spots_bag_sees_the_spot_first() -> None:
    xy = lattice("hexagonal")
    np.testing.assert_array_equal(nearest(xy, xy).index[:, 0], np.arange(len(xy)))


def test_tokens_are_expression_and_place_in_pitches() -> None:
    xy, centres = lattice("hexagonal"), np.array([[310.0, 270.0], [101.0, 55.0]])
    profiles = np.random.default_rng(0).normal(size=(len(xy), 3)).astype(np.float32)
    neighbours = nearest(centres, xy)
    tokens = neighbours.tokens(profiles)
    assert tokens.shape == (2, K, 3 + 4)
    np.testing.assert_array_equal(tokens[..., :3], profiles[neighbours.index])
    offset = (xy[neighbours.index] - centres[:, None]) / PITCH_UM
    distance = np.linalg.norm(offset, axis=-1)
    np.testing.assert_allclose(tokens[..., 3:5], offset, atol=1e-5)
    np.testing.assert_allclose(tokens[..., 5], distance, atol=1e-5)
    np.testing.assert_allclose(tokens[..., 6], np.exp(-distance), atol=1e-5)
    shifted = nearest(centres + 5000, xy + 5000)
    np.testing.assert_allclose(shifted.place, neighbours.place, atol=1e-4)


def test_as_published_tokens_know_no_place() -> None:
    xy = lattice("square")
    assert nearest(xy, xy, None).tokens(np.ones((len(xy), 3), np.float32)).shape == (len(xy), K, 3)


@pytest.mark.parametrize("n", [1, 2])
def test_where_there_are_too_few_all_are_seen(n: int) -> None:
    xy = lattice("square")[:n]
    index = nearest(lattice("hexagonal"), xy).index
    np.testing.assert_array_equal(np.sort(index, axis=1), np.tile(np.arange(n), (64, 1)))
