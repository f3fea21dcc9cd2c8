"""Elements arrive in memory and on disk, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from spatialdata import SpatialData, read_zarr
from spatialdata._io.format import SpatialDataContainerFormats
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel

from sphistex._store import add_element, check_free, record


def labels(value: int) -> object:
    return Labels2DModel.parse(np.full((8, 8), value, np.int32), dims=("y", "x"))


def table() -> AnnData:
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * 2), "instance_id": [0, 1]}, index=["a", "b"])
    adata = AnnData(np.ones((2, 3), np.float32), obs=obs)
    return TableModel.parse(adata, region="spots", region_key="region", instance_key="instance_id")


ELEMENTS = {
    "images": lambda: Image2DModel.parse(np.ones((5, 8, 8), np.float16), dims=("c", "y", "x")),
    "labels": lambda: labels(1),
    "shapes": lambda: ShapesModel.parse(np.array([[1.0, 2.0]]), geometry=0, radius=1.0),
    "tables": table,
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "section.zarr"
    image = Image2DModel.parse(np.zeros((3, 32, 32), np.uint8), dims=("c", "y", "x"))
    spots = ShapesModel.parse(np.array([[1.0, 2.0], [3.0, 4.0]]), geometry=0, radius=1.0)
    SpatialData(images={"he": image}, shapes={"spots": spots}).write(path)
    return path


@pytest.mark.parametrize("kind", ELEMENTS)
def test_every_kind_of_element_is_in_memory_and_on_disk(store: Path, kind: Any) -> None:
    sdata = read_zarr(store)
    add_element(sdata, kind, "new", ELEMENTS[kind]())
    assert "new" in getattr(sdata, kind)
    assert "new" in getattr(read_zarr(store), kind)
    assert os.listdir(store.parent) == [store.name], "nothing is left beside the store"
    assert zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None


def test_without_a_store_the_element_is_in_memory(tmp_path: Path) -> None:
    sdata = SpatialData()
    add_element(sdata, "labels", "mask", labels(1))
    assert "mask" in sdata.labels


@pytest.mark.filterwarnings("ignore:SpatialData is not stored in the most current format")
def test_a_store_of_the_previous_format_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "old.zarr"
    SpatialData(labels={"first": labels(1)}).write(path, sdata_formats=[SpatialDataContainerFormats["0.1"]])
    sdata = read_zarr(path)
    add_element(sdata, "labels", "second", labels(2))
    record(sdata, "second", {"value": 2})
    again = read_zarr(path)
    assert set(again.labels) == {"first", "second"}
    assert again.attrs["sphistex"] == {"second": {"value": 2}}


def test_an_existing_name_needs_overwrite_and_its_own_kind(store: Path) -> None:
    sdata = read_zarr(store)
    add_element(sdata, "labels", "mask", labels(1))
    with pytest.raises(ValueError, match="'mask'.*overwrite=True"):
        add_element(sdata, "labels", "mask", labels(2))
    with pytest.raises(ValueError, match="'he'.*sdata.images"):
        add_element(sdata, "labels", "he", labels(2), overwrite=True)
    assert int(read_zarr(store).labels["mask"].max()) == 1
    add_element(sdata, "labels", "mask", labels(2), overwrite=True)
    assert int(sdata.labels["mask"].max()) == 2
    assert int(read_zarr(store).labels["mask"].max()) == 2


def test_an_element_only_on_disk_is_not_replaced_silently(store: Path) -> None:
    sdata = read_zarr(store)
    add_element(read_zarr(store), "labels", "mask", labels(1))
    with pytest.raises(ValueError, match="on disk.*overwrite=True"):
        add_element(sdata, "labels", "mask", labels(2))


def test_records_survive_on_disk_and_do_not_touch_others(store: Path) -> None:
    sdata = read_zarr(store)
    sdata.attrs["mine"] = 1
    record(sdata, "a", {"list": [1, 2]})
    record(sdata, "b", {"x": None})
    assert read_zarr(store).attrs == {"mine": 1, "sphistex": {"a": {"list": [1, 2]}, "b": {"x": None}}}


# Children that add an element, each killed at another renaming of a file or folder: just before it or just after it.
KILLED = textwrap.dedent("""
    import os, signal, sys, warnings
    warnings.simplefilter("ignore")
    import numpy as np
    from spatialdata import read_zarr
    from spatialdata.models import Labels2DModel
    from sphistex._store import add_element

    steps = 0

    def counted(rename, deadline):
        def step(*args, **kwargs):
            for do in (lambda: None, lambda: rename(*args, **kwargs)):
                do()
                globals()["steps"] += 1
                if steps == deadline:
                    os.kill(os.getpid(), signal.SIGKILL)
        return step

    def child(path, deadline):
        if os.fork() == 0:
            sdata = read_zarr(path)
            new = Labels2DModel.parse(np.full((8, 8), 2, np.int32), dims=("y", "x"))
            os.rename, os.replace = counted(os.rename, deadline), counted(os.replace, deadline)
            add_element(sdata, "labels", "mask", new, overwrite=True)
            os._exit(steps)
        return os.wait()[1]

    n_steps = os.waitstatus_to_exitcode(child(sys.argv[1], None))
    for n, path in enumerate(sys.argv[2:]):
        print(os.waitstatus_to_exitcode(child(path, n_steps - n)))
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_time_the_store_is_readable_and_the_next_attempt_succeeds(store: Path, tmp_path: Path) -> None:
    add_element(read_zarr(store), "labels", "mask", labels(1))
    copies = [tmp_path / f"copy{n}.zarr" for n in range(12)]
    for path in copies:
        shutil.copytree(store, path)
    run = subprocess.run([sys.executable, "-c", KILLED, *map(str, copies)], capture_output=True, text=True, check=True)
    assert [int(line) for line in run.stdout.split()] == [-signal.SIGKILL] * 11
    found = []
    for path in copies[1:]:
        after = read_zarr(path)
        assert after.images["he"].shape == (3, 32, 32)
        found.append(set(np.unique(after.labels["mask"])) if "mask" in after.labels else None)
        add_element(after, "labels", "mask", labels(3), overwrite=True)
        assert int(read_zarr(path).labels["mask"].max()) == 3
    assert {1} in found, "killed early, the old element is there"
    assert {2} in found, "killed late, the new one is"
    assert all(values in ({1}, {2}, None) for values in found)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_full_disk_changes_nothing(store: Path) -> None:
    resource = pytest.importorskip("resource")
    sdata = read_zarr(store)
    big = np.random.default_rng(0).integers(0, 2**31, (300, 300), dtype=np.int32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match="labels.*'mask'.*unchanged"):
            add_element(sdata, "labels", "mask", Labels2DModel.parse(big, dims=("y", "x")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "mask" not in sdata.labels
    assert "mask" not in read_zarr(store).labels
    assert os.listdir(store.parent) == [store.name]


@pytest.mark.parametrize("name", ["my result", "a/b", "", ".", "__mine", 3])
def test_names_that_cannot_be_stored_are_refused_before_any_work(name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="cannot be stored"):
        check_free(SpatialData(), "tables", name, overwrite=True)
