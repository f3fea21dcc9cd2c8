"""Models trained by two worker processes are those trained here, also when one of them dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster, WorkerPlugin
from spatialdata import SpatialData, read_zarr

import sphistex as sx
from sphistex.nn.checkpoint import Checkpoint
from sphistex.nn.precision import fastest_dtype

# The workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

QUICK: dict[str, Any] = {"epochs": 3, "n_models": 3, "hidden": (16,), "context": (0, 2), "d": 16, "device": "cpu"}
QUICK |= {"precision": "float32"}


def colour(tiles: np.ndarray) -> np.ndarray:
    n, height, width, _ = tiles.shape
    return tiles.reshape(n, height // 16, 16, width // 16, 16, 3).mean((2, 4)) / 255


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path / "cache", False
    yield
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def sdata(tmp_path_factory: pytest.TempPathFactory) -> SpatialData:
    """A section on disk with mask and features; not to be changed."""
    path = tmp_path_factory.mktemp("store") / "section.zarr"
    sx.datasets.simulate(size_um=700, n_genes=8).write(path)
    sdata = read_zarr(path)
    sx.tl.superpixel_features(sdata, encoder=colour)
    return sdata


@pytest.fixture(scope="module")
def expected(sdata: SpatialData) -> sx.tl.SuperResolver:
    """The model that is trained here."""
    return sx.tl.fit(sdata, **QUICK)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def assert_same(found: sx.tl.SuperResolver, expected: sx.tl.SuperResolver) -> None:
    """But for rounding, as products of one model need not be computed in the order of those of three."""
    assert found.info["best_epoch"] == expected.info["best_epoch"]
    np.testing.assert_allclose(found.info["train_loss"], expected.info["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(found.info["validation_loss"], expected.info["validation_loss"], rtol=1e-5)
    for name, value in expected.module.state_dict().items():
        np.testing.assert_allclose(found.module.state_dict()[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found.image_share, expected.image_share, rtol=1e-3)


@pytest.mark.skipif(fastest_dtype("cpu") != torch.bfloat16, reason="a processor that multiplies bfloat16")
def test_in_half_precision_they_are_the_same_to_the_last_bit(sdata: SpatialData, client: Client) -> None:
    how = QUICK | {"precision": "bfloat16"}
    here = sx.tl.fit(sdata, **how)
    with client.as_current():
        there = sx.tl.fit(sdata, **how)
    assert there.info["validation_loss"] == here.info["validation_loss"]
    for name, value in here.module.state_dict().items():
        assert torch.equal(there.module.state_dict()[name], value), name
    np.testing.assert_array_equal(there.image_share, here.image_share)


def left(sdata: SpatialData) -> list[str]:
    return [path.name for path in Path(sdata.path).parent.glob(".section.zarr.fit-*")]


def test_workers_train_the_same_models(sdata: SpatialData, client: Client, expected: sx.tl.SuperResolver) -> None:
    with client.as_current():
        found = sx.tl.fit(sdata, **QUICK)
    assert_same(found, expected)
    assert not left(sdata)


class Watching(WorkerPlugin):
    """A worker notes the epochs that it trains; the first that has trained the second one dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, worker: Any) -> None:
        watch(self.folder)


def watch(folder: Path) -> None:
    keep = Checkpoint.keep

    def noted(self: Checkpoint, state: dict[str, Any]) -> None:
        self._due = 0.0  # also the quickest epochs
        keep(self, state)
        assert self.path is not None
        epoch = len(state["log"]["train_of"][0])
        with (folder / "epochs.txt").open("a") as file:
            file.write(f"{self.path.stem} {epoch}\n")
        if epoch == 2 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.keep = noted  # type: ignore[method-assign]


def test_what_a_worker_that_dies_was_at_is_gone_on_with(
    sdata: SpatialData, client: Client, expected: sx.tl.SuperResolver, tmp_path: Path
) -> None:
    before = set(client.run(os.getpid).values())
    # new workers as well
    client.register_plugin(Watching(tmp_path))
    with client.as_current():
        found = sx.tl.fit(sdata, **QUICK)
    assert_same(found, expected)
    assert len(before - set(client.run(os.getpid).values())) >= 1, "one died"
    epochs = (tmp_path / "epochs.txt").read_text().split("\n")[:-1]
    assert sorted(epochs) == [f"member-{member} {epoch}" for member in range(3) for epoch in (1, 2, 3)], "each once"
    assert not left(sdata)


def test_a_folder_that_workers_cannot_see_is_named(sdata: SpatialData, client: Client) -> None:
    from sphistex.tl._members import _train_member

    with pytest.raises(FileNotFoundError, match="absent/job.pt cannot be read by the worker"):
        client.submit(_train_member, Path("absent/job.pt"), "cpu", 0).result()
