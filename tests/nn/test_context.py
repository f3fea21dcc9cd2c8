"""Surroundings of superpixels against a direct mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sphistex.nn.context import FeatureMap

RNG = np.random.default_rng(0)
CONTEXT = (0, 1, 4)


@pytest.fixture
def section() -> FeatureMap:
    """Features with large numbers outside the tissue, which must not leak in."""
    mask = RNG.random((37, 30)) < 0.6
    mask[:3, :3] = True  # also at the border
    mask[20:, 20:] = False
    features = RNG.normal(size=(4, *mask.shape)).astype(np.float32)
    features[:, ~mask] = 1e4
    return FeatureMap(features, mask, CONTEXT, block=16)


def direct(section: FeatureMap) -> np.ndarray:
    """Mean over the tissue among the (2r + 1)² superpixels around each, one superpixel at a time."""
    rows, columns = section.mask.shape
    features = np.asarray(section.features)
    out = np.zeros((rows, columns, section.dim))
    for row, column in np.argwhere(section.mask):
        parts = []
        for r in section.context:
            window = slice(max(row - r, 0), row + r + 1), slice(max(column - r, 0), column + r + 1)
            parts.append(features[(slice(None), *window)][:, section.mask[window]].mean(1))
        out[row, column] = np.concatenate(parts)
    return out


def test_context_is_the_mean_of_the_tissue_around(section: FeatureMap) -> None:
    assert section.dim == 12
    whole = section.read(slice(0, 37), slice(0, 30))
    np.testing.assert_allclose(whole, direct(section), atol=1e-4)
    assert not whole[~section.mask].any()


@pytest.mark.parametrize("block", [5, 16, 64])
def test_blocks_cover_the_tissue_once_and_read_the_same(section: FeatureMap, block: int) -> None:
    section, reference = replace(section, block=block), direct(section)
    visits = np.zeros(section.mask.shape, int)
    for rows, columns in section.blocks():
        visits[rows, columns] += 1
        np.testing.assert_allclose(section.read(rows, columns), reference[rows, columns], atol=1e-4)
    assert (visits[section.mask] == 1).all()
    assert visits.max() == 1


def test_places_count_the_tissue_row_by_row(section: FeatureMap) -> None:
    order = np.full(section.mask.shape, -1)
    order[section.mask] = np.arange(section.mask.sum())
    for window in replace(section, block=7).blocks():
        np.testing.assert_array_equal(section.places(window), order[window][section.mask[window]])


def test_windows_beside_the_image_are_clipped(section: FeatureMap) -> None:
    np.testing.assert_allclose(section.read(slice(30, 60), slice(25, 60)), direct(section)[30:, 25:], atol=1e-4)


def test_gathered_superpixels_are_those_of_the_map(section: FeatureMap) -> None:
    index = RNG.permutation(np.flatnonzero(section.mask))[:50]
    np.testing.assert_allclose(section.gather(index), direct(section).reshape(-1, 12)[index], atol=1e-4)


def test_only_what_is_needed_is_read() -> None:
    class Watched:
        shape: tuple[int, ...] = (2, 200, 200)
        reads: list[tuple[int, ...]] = []

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            part = np.zeros(self.shape, np.float16)[key]
            self.reads.append(part.shape)
            return part

    features = Watched()
    FeatureMap(features, np.ones((200, 200), bool), (0, 3)).read(slice(64, 128), slice(64, 128))
    assert features.reads == [(2, 70, 70)]


def test_features_and_mask_of_different_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 5, 5\).*\(5, 6\).*same grid"):
        FeatureMap(np.zeros((2, 5, 5)), np.ones((5, 6), bool))
