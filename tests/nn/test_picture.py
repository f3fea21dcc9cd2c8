"""A section's picture keeps its values, and neighbours on the lattice are neighbours in the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sphistex.nn.picture import Layout


def visium(height: int = 7, width: int = 12) -> np.ndarray:
    row, column = np.indices((height, width))
    return np.argwhere((row + column) % 2 == 0)


def test_values_come_back() -> None:
    layout = Layout.of(*visium().T, hexagonal=True)
    values = torch.randn(len(layout.rows), 3)
    torch.testing.assert_close(layout.values(layout.picture(values)), values)
    assert int(layout.mask.sum()) == len(values)


def test_neighbours_on_the_hexagonal_lattice_are_always_the_same_pixels_around() -> None:
    array = visium()
    xy = np.stack([array[:, 1] / 2, array[:, 0] * np.sqrt(3) / 2], 1)
    layout = Layout.of(*array.T, hexagonal=True)
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    first, second = np.nonzero(np.isclose(apart, 1))
    steps = {
        (int(layout.rows[j] - layout.rows[i]), int(layout.columns[j] - layout.columns[i]))
        for i, j in zip(first, second, strict=True)
    }
    assert steps == {(0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1)}


def test_pictures_of_pieces_far_apart_are_small_and_each_piece_is_as_it_was() -> None:
    near, far = visium(), visium() + [1001, 5001]
    layout = Layout.of(*np.concatenate([near, far]).T, hexagonal=True)
    assert max(layout.shape) < 100
    alone = Layout.of(*near.T, hexagonal=True)
    for piece in np.split(np.stack([layout.rows, layout.columns]), 2, axis=1):
        np.testing.assert_array_equal(piece - piece.min(1, keepdims=True), [alone.rows, alone.columns])
    values = torch.randn(len(layout.rows), 3)
    torch.testing.assert_close(layout.values(layout.picture(values)), values)
    apart = np.stack([layout.rows, layout.columns], 1)
    assert np.abs(apart[: len(near), None] - apart[None, len(near) :]).max(-1).min() > 16


def test_what_is_no_lattice_is_refused() -> None:
    with pytest.raises(ValueError, match="no hexagonal lattice"):
        Layout.of([0, 0], [0, 1], hexagonal=True)
    with pytest.raises(ValueError, match="same array_row and array_col"):
        Layout.of([0, 0], [1, 1], hexagonal=False)
