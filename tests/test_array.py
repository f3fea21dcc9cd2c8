"""Rows and columns of spots say which are neighbours, however the array lies on the image."""

from __future__ import annotations

import numpy as np
import pytest

from sphistex._array import Kind, array_coordinates, lattice_over


def neighbours(xy: np.ndarray, pitch: float) -> set[tuple[int, int]]:
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    return set(zip(*np.nonzero((apart > 0) & (apart < 1.2 * pitch)), strict=True))


def neighbours_on_array(array: np.ndarray, kind: Kind) -> set[tuple[int, int]]:
    step = np.abs(array[:, None] - array[None])
    near = (step == [0, 2]).all(-1) | (step == [1, 1]).all(-1) if kind == "hexagonal" else step.sum(-1) == 1
    return set(zip(*np.nonzero(near), strict=True))


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
@pytest.mark.parametrize("degrees", [0, 7, 90, 171])
def test_neighbours_are_neighbours_on_the_array(kind: Kind, degrees: float) -> None:
    rng = np.random.default_rng(0)
    xy, _ = lattice_over((0, 0, 3000, 2500), 100, kind)
    xy = xy[rng.random(len(xy)) < 0.8]  # holes
    turn = np.radians(degrees)
    xy = xy @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * 1.003
    xy = xy + rng.normal(0, 3, xy.shape)
    array = array_coordinates(xy, 100, kind)
    assert array.min(0).tolist() in ([0, 0], [0, 1])
    assert neighbours_on_array(array, kind) == neighbours(xy, 100)


def test_what_lies_on_no_lattice_is_refused() -> None:
    xy = np.random.default_rng(0).uniform(0, 1000, (200, 2))
    with pytest.raises(ValueError, match="no square lattice"):
        array_coordinates(xy, 50, "square")


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
def test_a_lattice_fills_its_box(kind: Kind) -> None:
    xy, array = lattice_over((100, 200, 1100, 900), 100, kind)
    assert (xy >= [100, 200]).all()
    assert (xy <= [1100, 900]).all()
    assert neighbours_on_array(array, kind) == neighbours(xy, 100)
    area = 100**2 * (3**0.5 / 2 if kind == "hexagonal" else 1)
    assert len(xy) == pytest.approx(1000 * 700 / area, rel=0.1)
