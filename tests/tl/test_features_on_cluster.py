"""Feature maps made by two worker processes are those made here, also when one of them dies."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import tifffile
import torch
from distributed import Client, LocalCluster
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel

from sphistex.io import read_image
from sphistex.settings import settings
from sphistex.tl.features import superpixel_features

# The workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

COLOURS = np.random.default_rng(0).integers(1, 256, (3, 130, 150), dtype=np.uint8)  # nine chunks


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = settings.cache_dir, settings.progress
    settings.cache_dir, settings.progress = tmp_path / "cache", False
    yield
    settings.cache_dir, settings.progress = before


class Watched:
    """Mean colours, which note in a folder which process looked at which chunk; on one chunk the first one dies."""

    name, revision, tile_size, halo_px = "watched", "1", 1024, 0

    def __init__(self, folder: Path, *, deadly: bool = False) -> None:
        self.folder, self.deadly = folder, deadly
        folder.mkdir()

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        tokens = tiles.reshape(len(tiles), 64, 16, 64, 16, 3).mean((2, 4))
        flag = self.folder / "died"
        if self.deadly and (tokens[0, 0, 0] == COLOURS[:, 64, 64]).all() and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if tiles.any():
            (self.folder / f"{os.getpid()}").touch()
        return tokens


def on_disk(folder: Path) -> SpatialData:
    image = Image2DModel.parse(COLOURS.repeat(16, 1).repeat(16, 2), dims=("c", "y", "x"), chunks=(3, 512, 512))
    SpatialData(images={"he": image}).write(folder / "s.zarr")
    return read_zarr(folder / "s.zarr")


def in_tiff(folder: Path) -> SpatialData:
    picture = COLOURS.repeat(16, 1).repeat(16, 2).transpose(1, 2, 0)
    tifffile.imwrite(folder / "slide.tif", picture, tile=(256, 256), photometric="rgb", compression="zlib")
    return read_image(folder / "slide.tif")


def in_memory(folder: Path) -> SpatialData:
    return SpatialData(images={"he": Image2DModel.parse(COLOURS.repeat(16, 1).repeat(16, 2), dims=("c", "y", "x"))})


@pytest.mark.parametrize("make", [on_disk, in_tiff, in_memory])
def test_workers_make_the_same_map(tmp_path: Path, cluster: LocalCluster, make) -> None:
    sdata, encoder = make(tmp_path), Watched(tmp_path / "log")
    with Client(cluster):
        superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    np.testing.assert_array_equal(sdata.images["superpixel_features"], COLOURS)
    assert str(os.getpid()) not in os.listdir(tmp_path / "log")


def test_built_in_encoder(tmp_path: Path, cluster: LocalCluster) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (3, 1100, 300), dtype=np.uint8)
    sdata = SpatialData(images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"))})
    arguments: dict[str, Any] = {"encoder": "efficientnet_lite0", "labels_key": None, "mpp": 0.5, "device": "cpu"}
    with Client(cluster):
        superpixel_features(sdata, key_added="there", **arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # and not one, as the workers
    superpixel_features(sdata, key_added="here", **arguments)
    torch.set_num_threads(before)
    np.testing.assert_array_equal(sdata.images["there"], sdata.images["here"])


def test_a_worker_that_dies_is_replaced_and_nothing_is_done_twice(tmp_path: Path, cluster: LocalCluster) -> None:
    sdata, encoder = on_disk(tmp_path), Watched(tmp_path / "log", deadly=True)
    with Client(cluster):
        superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    assert (tmp_path / "log/died").exists()
    np.testing.assert_array_equal(read_zarr(tmp_path / "s.zarr").images["superpixel_features"], COLOURS)
    (record,) = tmp_path.rglob("done.txt")
    chunks = [tuple(line.split()[:2]) for line in record.read_text().splitlines()]
    assert sorted(chunks) == [(str(row), str(column)) for row in range(3) for column in range(3)]


def test_a_damaged_image_is_named_by_the_worker(
    tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["sphistex.tl.features"], "_READ_QUICKLY", 0)  # only windows are looked at before
    sdata, encoder = on_disk(tmp_path), Watched(tmp_path / "log")
    (chunk,) = tmp_path.rglob("he/*/c/0/3/2")
    chunk.write_bytes(chunk.read_bytes()[:1000])
    with Client(cluster), pytest.raises(OSError, match=r"the image \(rows .*\) cannot be read .*copy it again"):
        superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    assert list(read_zarr(tmp_path / "s.zarr").images) == ["he"]


def test_a_worker_without_room_says_so_and_the_next_run_goes_on(tmp_path: Path, cluster: LocalCluster) -> None:
    sdata, encoder = on_disk(tmp_path), Watched(tmp_path / "log")

    def files_up_to(size: int) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit if size < 0 else size, limit))

    with Client(cluster) as client:
        client.run(files_up_to, 1000)
        try:
            with pytest.raises(OSError, match="feature map could not be written.*goes on where it stopped"):
                superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
        finally:
            client.run(files_up_to, -1)
        assert list(sdata.images) == ["he"]
        superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    np.testing.assert_array_equal(read_zarr(tmp_path / "s.zarr").images["superpixel_features"], COLOURS)
