"""Images made smaller keep their colours and their places."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from skimage.measure import block_reduce
from spatialdata import SpatialData, get_pyramid_levels, read_zarr
from spatialdata.models import Image2DModel
from xarray import DataArray

from sphistex._thumbnail import cheapest, shrink


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


def test_levels_are_read_where_they_are_stored_and_not_computed(image: DataArray, tmp_path: Path) -> None:
    sdata = SpatialData(images={"he": Image2DModel.parse(image[:3], scale_factors=[2, 2, 2])})
    sdata.write(tmp_path / "section.zarr")
    stored = read_zarr(tmp_path / "section.zarr")
    computed, on_disk = (list(get_pyramid_levels(one.images["he"])) for one in (sdata, stored))
    assert cheapest(computed, 150) is computed[0]
    assert cheapest(on_disk, 150) is on_disk[2]
    assert cheapest(on_disk, 5000) is on_disk[0]
