"""A fit that was interrupted goes on where it was, and comes out as if it had not been."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr

import sphistex as sx
import sphistex.tl.super_resolve
from sphistex.nn import training
from sphistex.nn.checkpoint import Checkpoint

QUICK: dict[str, Any] = {"epochs": 4, "n_models": 2, "hidden": (16,), "context": (0, 2), "d": 16, "device": "cpu"}


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
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A section on disk with mask and features; not to be changed."""
    path = tmp_path_factory.mktemp("store") / "section.zarr"
    sx.datasets.simulate(size_um=700, n_genes=8).write(path)
    sx.tl.superpixel_features(read_zarr(path), encoder=colour)
    return path


@pytest.fixture
def backed(store: Path, tmp_path: Path) -> SpatialData:
    return read_zarr(shutil.copytree(store, tmp_path / "section.zarr"))


class Interrupted(Exception):
    pass


def fail(*_: Any, **__: Any) -> None:
    raise Interrupted


# sphistex.tl.super_resolve is the function
MODULE = sys.modules["sphistex.tl.super_resolve"]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every training ends with an exception after so many epochs as the last of these numbers, which is taken off."""
    epochs: list[int] = []
    keep = Checkpoint.keep

    def kept(self: Checkpoint, state: dict[str, Any]) -> None:
        self._due = 0.0  # also the quickest epochs
        keep(self, state)
        if epochs and len(state["log"]["train_of"][0]) == epochs[-1]:
            epochs.pop()
            raise Interrupted

    monkeypatch.setattr(Checkpoint, "keep", kept)
    return epochs


def folders(sdata: SpatialData, tmp_path: Path) -> list[Path]:
    """Where fits have left something."""
    return [*tmp_path.glob(".section.zarr.fit-*"), *(tmp_path / "cache" / "fits").glob("*")]


def weights(model: sx.tl.SuperResolver) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.module.state_dict().items()}


def assert_same(one: sx.tl.SuperResolver, two: sx.tl.SuperResolver) -> None:
    assert weights(one).keys() == weights(two).keys()
    for name, value in weights(one).items():
        np.testing.assert_array_equal(value, weights(two)[name], err_msg=name)
    assert one.info["validation_loss"] == two.info["validation_loss"]
    assert one.info["best_epoch"] == two.info["best_epoch"]
    np.testing.assert_array_equal(one.image_share, two.image_share)


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_interrupted_fit_goes_on_with_its_epoch(
    backed: SpatialData, tmp_path: Path, interrupted: list[int], on_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata = backed
    if not on_disk:
        sdata = SpatialData(**{kind: dict(getattr(backed, kind)) for kind in ("images", "labels", "shapes", "tables")})
        sdata.attrs = backed.attrs
    expected = sx.tl.fit(sdata, **QUICK)
    assert not folders(sdata, tmp_path), "nothing is left of a fit that has ended"
    interrupted[:] = [3, 1]
    for _ in range(2):
        with pytest.raises(Interrupted):
            sx.tl.fit(sdata, **QUICK)
        (left,) = folders(sdata, tmp_path)
        assert left.name.startswith(".section.zarr.fit-") == on_disk
    trained: list[int] = []
    going_on = training.TrainingLog.going_on

    def counted(log: training.TrainingLog, patience: int | None) -> list[int]:
        trained.append(len(log))
        return going_on(log, patience)

    monkeypatch.setattr(training.TrainingLog, "going_on", counted)
    assert_same(sx.tl.fit(sdata, **QUICK), expected)
    assert trained == [3], "one epoch was left"
    assert not folders(sdata, tmp_path)


@pytest.mark.parametrize("change", [{"seed": 1}, {"dropout": 0.1}, {"genes": 7}, {"counts": 1}, {"features": 1}])
def test_a_fit_of_something_else_does_not_go_on_with_it(
    backed: SpatialData, tmp_path: Path, interrupted: list[int], change: dict[str, Any]
) -> None:
    interrupted[:] = [3]
    with pytest.raises(Interrupted):
        sx.tl.fit(backed, **QUICK)
    if change.pop("counts", None):
        backed.tables["counts"].X[0, 0] += 1
    if change.pop("features", None):
        backed.images["superpixel_features"] = backed.images["superpixel_features"] + np.float16(0.01)
    interrupted[:] = [1]
    with pytest.raises(Interrupted):  # so it began at the beginning
        sx.tl.fit(backed, **(QUICK | change))
    assert len(folders(backed, tmp_path)) == 2


@pytest.mark.parametrize(("days", "left"), [(6, 2), (8, 1)])
def test_what_was_left_for_a_week_is_removed_by_a_later_fit(
    backed: SpatialData, tmp_path: Path, interrupted: list[int], days: int, left: int
) -> None:
    interrupted[:] = [1]
    with pytest.raises(Interrupted):
        sx.tl.fit(backed, **QUICK)
    (old,) = folders(backed, tmp_path)
    then = time.time() - days * 86_400
    os.utime(old, (then, then))
    (tmp_path / ".section.zarr.fit-notes").mkdir()  # no fit's
    os.utime(tmp_path / ".section.zarr.fit-notes", (0, 0))
    sx.tl.fit(backed, **QUICK, seed=1)
    assert len(folders(backed, tmp_path)) == left


def test_a_fit_is_not_lost_with_the_prediction(
    backed: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "predict_section", fail)
        with pytest.raises(Interrupted):
            sx.tl.super_resolve(backed, encoder=colour, **QUICK)
    assert len(folders(backed, tmp_path)) == 1
    assert "superres" not in read_zarr(backed.path).tables
    with monkeypatch.context() as patch:
        patch.setattr(training, "_gradient", fail)
        model = sx.tl.super_resolve(backed, encoder=colour, **QUICK)
    assert not folders(backed, tmp_path)
    sx.tl.super_resolve(backed, encoder=colour, key_added="at_once", **QUICK)
    np.testing.assert_array_equal(backed.tables["superres"].X, backed.tables["at_once"].X)
    assert_same(model, sx.tl.fit(backed, **QUICK))


def test_a_damaged_model_is_fitted_again_with_a_warning(
    backed: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sx.tl.fit(backed, **QUICK)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(MODULE, "predict_section", fail)
        sx.tl.super_resolve(backed, encoder=colour, **QUICK)
    (file,) = tmp_path.glob(".section.zarr.fit-*/model/model.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="fitted model in .* cannot be read, it is fitted anew"):
        model = sx.tl.super_resolve(backed, encoder=colour, **QUICK)
    assert_same(model, expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_beside_a_store_that_cannot_be_written_the_cache_is_used(
    backed: SpatialData, tmp_path: Path, interrupted: list[int]
) -> None:
    tmp_path.chmod(0o500)
    interrupted[:] = [1]
    with pytest.raises(Interrupted):
        sx.tl.fit(backed, **QUICK)
    tmp_path.chmod(0o700)
    assert [path.parent.name for path in folders(backed, tmp_path)] == ["fits"]
