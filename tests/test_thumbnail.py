"""Images made smaller keep their colours and their places."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from skimage.measure import block_reduce
from xarray import DataArray

from sphistex._thumbnail import shrink


@pytest.fixture
def image() -> DataArray:
    """A picture of smooth colours with the noise of a camera, in tiles, with a fourth channel to be left out."""
    y, x = np.mgrid[:700, :500] / 100
    clean = np.stack([np.sin(x) + np.cos(y), np.cos(x * y / 3), np.sin(y), y])
    noisy = 120 + 40 * clean + np.random.default_rng(0).normal(0, 5, clean.shape)
    return DataArray(da.from_array(noisy.clip(0, 255).astype(np.uint8), chunks=(4, 128, 128)), dims=("c", "y", "x"))


@pytest.mark.parametrize("factor", [1, 2, 3, 7, 50])
def test_squares_are_averaged(image: DataArray, factor: int) -> None:
    means = block_reduce(image.values[:3], (1, factor, factor), np.mean)[:, : 700 // factor, : 500 // factor]
    np.testing.assert_allclose(shrink(image, factor), np.moveaxis(means, 0, -1), atol=1)


def test_strips_and_blocks_leave_no_seam(image: DataArray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shrink(image, 9)
    monkeypatch.setattr("sphistex._thumbnail._STRIP_PX", 50_000)
    monkeypatch.setattr("sphistex._thumbnail._BLOCK_PX", 40)
    np.testing.assert_array_equal(shrink(image, 9), whole)
