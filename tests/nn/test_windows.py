"""Windows cover the tissue, whichever blocks it is predicted in."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sphistex.nn.windows import Windows

VISIUM, LEGACY_ST = 27.5 / 8, 50 / 8
SHAPE = (50, 41)


@pytest.fixture(params=["full", "half", "scattered"])
def mask(request: pytest.FixtureRequest) -> NDArray[np.bool_]:
    if request.param == "full":
        return np.ones(SHAPE, dtype=bool)
    if request.param == "half":
        return np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1])) > 45
    return np.random.default_rng(0).random(SHAPE) < 0.05


def blocks(size: int) -> list[tuple[slice, slice]]:
    return [
        (slice(row, min(row + size, SHAPE[0])), slice(column, min(column + size, SHAPE[1])))
        for row in range(0, SHAPE[0], size)
        for column in range(0, SHAPE[1], size)
    ]


@pytest.mark.parametrize("radius", [VISIUM, LEGACY_ST])
@pytest.mark.parametrize("size", [7, 16, 64])
def test_every_tissue_superpixel_gets_weight_from_its_own_block(mask, radius: float, size: int) -> None:
    windows = Windows(radius, stride=3)
    for rows, columns in blocks(size):
        _, members, weight = windows.over(rows, columns, mask)
        total = np.zeros(SHAPE)
        np.add.at(total, (members[..., 0], members[..., 1]), weight)
        assert (total[rows, columns][mask[rows, columns]] > 0.1).all()
        assert (total[~mask] == 0).all()


@pytest.mark.parametrize("size", [7, 16])
def test_a_superpixel_lies_in_the_same_windows_whatever_the_block(mask, size: int) -> None:
    windows = Windows(VISIUM, stride=3)

    def by_superpixel(rows: slice, columns: slice) -> dict[tuple[int, ...], dict[tuple[int, ...], float]]:
        found: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
        for centre, members, weight in zip(*windows.over(rows, columns, mask), strict=True):
            for member, share in zip(members[weight > 0], weight[weight > 0], strict=True):
                found.setdefault(tuple(member), {})[tuple(centre)] = float(share)
        return found

    whole = by_superpixel(slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    rows, columns = blocks(size)[3]
    part = by_superpixel(rows, columns)
    for row, column in np.argwhere(mask[rows, columns]) + (rows.start, columns.start):
        assert part[row, column] == whole[row, column]


def test_windows_are_disks_that_lose_weight_outwards() -> None:
    mask = np.ones(SHAPE, dtype=bool)
    centres, members, weight = Windows(VISIUM, stride=3).over(slice(0, 50), slice(0, 41), mask)
    inside = weight > 0
    distance = np.linalg.norm(members - centres[:, None], axis=-1)
    assert distance[inside].max() <= VISIUM
    interior = ((centres > 4) & (centres < np.array(SHAPE) - 5)).all(1)
    assert (inside[interior].sum(1) == 37).all(), "a Visium spot is a disk of 37 of 7 × 7 superpixels"
    order = np.argsort(distance[interior][0])
    assert (np.diff(weight[interior][0][order]) <= 1e-6).all()
    assert weight[interior].max() == 1.0
