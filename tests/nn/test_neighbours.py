"""What a bag sees of the spots around it, and that it never sees its own answer while training."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial.distance import cdist

from sphistex.lattice import enhancement_matrix
from sphistex.nn.neighbours import Neighbours

PITCH_UM = 100.0
K = 6


def lattice(kind: str, n: int = 8) -> NDArray[np.float64]:
    row, column = np.indices((n, n)).reshape(2, -1)
    if kind == "square":
        return PITCH_UM * np.column_stack([column, row]).astype(float)
    return PITCH_UM * np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])


def positions(matrix: sparse.csr_matrix, xy_um: NDArray, *, pitch_um: float | None = None, k: int = K) -> Neighbours:
    """Positions whose tokens are their own number, one-hot."""
    return Neighbours(matrix @ xy_um, np.eye(matrix.shape[0], dtype=np.float32), matrix, k, pitch_um)


def seen(tokens: NDArray, allowed: NDArray) -> NDArray[np.int64]:
    """Number of every position seen, -1 where there is none."""
    return np.where(allowed, tokens.argmax(-1), -1)


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
@pytest.mark.parametrize("enhanced", [False, True])
def test_without_holding_out_the_nearest_positions_are_seen(kind: str, enhanced: bool) -> None:
    xy = lattice(kind)
    matrix = enhancement_matrix(xy, PITCH_UM) if enhanced else sparse.identity(len(xy), format="csr")
    centres = np.random.default_rng(0).uniform(0, 600, (50, 2))
    tokens, allowed = positions(matrix, xy).around(centres)
    assert tokens.shape == (50, K, matrix.shape[0])
    assert allowed.all()
    distance = cdist(centres, matrix @ xy)
    found = np.take_along_axis(distance, seen(tokens, allowed), axis=1)
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(distance, axis=1)[:, :K])


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
@pytest.mark.parametrize("positions_enhanced", [False, True])
@pytest.mark.parametrize("bags_enhanced", [False, True])
def test_a_bag_never_sees_its_own_spots_nor_what_was_made_of_them(
    kind: str, positions_enhanced: bool, bags_enhanced: bool
) -> None:
    xy = lattice(kind)
    measured = sparse.identity(len(xy), format="csr")
    enhanced = enhancement_matrix(xy, PITCH_UM)
    origin, own = (enhanced if which else measured for which in (positions_enhanced, bags_enhanced))
    tokens, allowed = positions(origin, xy).around(own @ xy, own)
    assert allowed.all(), "there are enough others"
    related = (origin @ own.T).toarray() > 0  # (n_positions, n_bags)
    number = seen(tokens, allowed)
    assert not related[number, np.arange(len(number))[:, None]].any()
    distance = np.where(related, np.inf, cdist(origin @ xy, own @ xy)).T
    found = np.take_along_axis(distance, number, axis=1)
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(distance, axis=1)[:, :K])


def test_changing_a_spots_counts_does_not_change_what_its_own_bag_sees() -> None:
    xy, rng = lattice("hexagonal"), np.random.default_rng(0)
    matrix = enhancement_matrix(xy, PITCH_UM)
    counts = rng.poisson(5, (len(xy), 4)).astype(np.float32)
    other = counts.copy()
    other[20] += 100
    own = sparse.identity(len(xy), format="csr")
    before, after = (
        Neighbours(matrix @ xy, np.asarray(matrix @ c, np.float32), matrix, K, PITCH_UM).around(xy, own)[0]
        for c in (counts, other)
    )
    np.testing.assert_array_equal(before[20], after[20])
    assert (before != after).any(axis=(1, 2)).sum() >= 6, "its neighbours see the change"


def test_places_are_relative_to_the_bag_in_pitches() -> None:
    xy = lattice("hexagonal")
    neighbours = positions(sparse.identity(len(xy), format="csr"), xy, pitch_um=PITCH_UM)
    centres = np.array([[310.0, 270.0], [101.0, 55.0]])
    tokens, allowed = neighbours.around(centres)
    assert tokens.shape[-1] == neighbours.dim == len(xy) + 4
    number = tokens[..., : len(xy)].argmax(-1)
    offset = (xy[number] - centres[:, None]) / PITCH_UM
    np.testing.assert_allclose(tokens[..., -4:-2], offset, atol=1e-5)
    distance = np.linalg.norm(offset, axis=-1)
    np.testing.assert_allclose(tokens[..., -2], distance, atol=1e-5)
    np.testing.assert_allclose(tokens[..., -1], np.exp(-distance), atol=1e-5)
    shifted = Neighbours(xy + 5000, neighbours.tokens, neighbours.origin, K, PITCH_UM).around(centres + 5000)
    np.testing.assert_allclose(shifted[0], tokens, atol=1e-4)


def test_where_there_are_too_few_the_missing_are_masked_zeros() -> None:
    xy = lattice("square", 2)
    own = sparse.identity(4, format="csr")
    tokens, allowed = positions(own, xy).around(xy, own)
    assert allowed.sum(1).tolist() == [3] * 4
    assert not tokens[~allowed].any()
