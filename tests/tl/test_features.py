"""The feature map: where it lies, that it resumes, and that nothing is half done."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from anndata import AnnData
from spatialdata import SpatialData, get_extent, read_zarr
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Affine, Identity, get_transformation

from sphistex.encoders.adapters import CallableEncoder
from sphistex.encoders.tiling import Tiling
from sphistex.grid import Grid
from sphistex.io import from_spots
from sphistex.settings import settings
from sphistex.tl import _feature_store as store
from sphistex.tl._chunks import ChunkRecord
from sphistex.tl._encoding import fill
from sphistex.tl._feature_store import prepare
from sphistex.tl.features import superpixel_features

# sphistex.tl.features is the module, whatever sphistex.tl has of that name
features_module = sys.modules["sphistex.tl.features"]

RNG = np.random.default_rng(0)
ROTATED = Affine([[0, -2.0, 10], [2.0, 0, 20], [0, 0, 1]], ("x", "y"), ("x", "y"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = settings.cache_dir, settings.progress
    settings.cache_dir, settings.progress = tmp_path / "cache", False
    yield
    settings.cache_dir, settings.progress = before


class MeanColour:
    """Tokens are the mean colours of the patches; counts its calls."""

    name, revision = "mean_colour", "1"
    tile_size, halo_px, patch_size = 512, 0, 16

    def __init__(self) -> None:
        self.calls = -1  # one of them only asks for the dimension

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        self.calls += 1
        n, height, width, _ = tiles.shape
        return tiles.reshape(n, height // 16, 16, width // 16, 16, 3).mean((2, 4))


def section(colours: np.ndarray, path: Path | None = None) -> SpatialData:
    """One colour (3, rows, columns) per superpixel, at 0.5 µm per pixel."""
    image = Image2DModel.parse(
        colours.repeat(16, 1).repeat(16, 2),
        dims=("c", "y", "x"),
        transformations={"global": Identity(), "rotated": ROTATED},
        chunks=(3, 256, 256),
    )
    sdata = SpatialData(images={"he": image})
    if path is not None:
        sdata.write(path)
        sdata = read_zarr(path)
    return sdata


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    return RNG.integers(1, 256, (3, 100, 70), dtype=np.uint8)


@pytest.mark.parametrize("backed", [True, False])
def test_the_map_is_the_image_on_the_grid(tmp_path: Path, colours: np.ndarray, backed: bool) -> None:
    sdata = section(colours, tmp_path / "s.zarr" if backed else None)
    superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=0.5, key_added="map")
    element = sdata.images["map"]
    assert element.dtype == np.float16
    assert element.data.chunks == ((3,), (64, 36), (64, 6)), "lazy, in chunks of all channels"
    np.testing.assert_array_equal(element, colours)
    assert get_extent(element, "rotated") == get_extent(sdata.images["he"], "rotated")
    assert set(get_transformation(element, get_all=True)) == {"global", "rotated"}
    if backed:
        again = read_zarr(tmp_path / "s.zarr")
        np.testing.assert_array_equal(again.images["map"], colours)
        assert again.attrs["sphistex"]["map"] == sdata.attrs["sphistex"]["map"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr"], "nothing is left beside the store"
        assert sdata.is_self_contained()


def test_the_parameters_are_recorded(tmp_path: Path, colours: np.ndarray) -> None:
    sdata = section(colours)
    superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=0.5, halo_px=16)
    params = sdata.attrs["sphistex"]["superpixel_features"]
    expected = {
        "encoder": "mean_colour",
        "revision": "1",
        "dim": 3,
        "mpp": 0.5,
        "pitch_um": 8.0,
        "image_key": "he",
        "halo_px": 16,
    }
    assert params.items() >= expected.items()


def test_outside_the_tissue_is_zero(tmp_path: Path, colours: np.ndarray) -> None:
    sdata = section(colours)
    mask = RNG.random((100, 70)) < 0.3
    sdata.labels["mask"] = Labels2DModel.parse(mask.astype(np.uint8), dims=("y", "x"))
    superpixel_features(sdata, encoder=MeanColour(), labels_key="mask", mpp=0.5)
    np.testing.assert_array_equal(sdata.images["superpixel_features"], np.where(mask, colours, 0))


def test_the_tissue_mask_is_made_when_there_is_none(tmp_path: Path) -> None:
    picture = np.full((3, 800, 800), 240, np.uint8)
    picture[:, 200:600, 200:600] = RNG.integers(60, 200, (3, 400, 400), dtype=np.uint8)
    sdata = SpatialData(images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"))})
    superpixel_features(sdata, encoder=MeanColour(), mpp=0.5)
    described = np.asarray(np.any(sdata.images["superpixel_features"], axis=0))
    np.testing.assert_array_equal(described, np.asarray(sdata.labels["tissue"]) > 0)
    assert described[25, 25]
    assert not described[2, 2]


def test_the_same_call_again_keeps_the_map_and_another_one_asks(tmp_path: Path, colours: np.ndarray) -> None:
    sdata, encoder = section(colours, tmp_path / "s.zarr"), MeanColour()
    arguments: dict[str, Any] = {"encoder": encoder, "labels_key": None, "mpp": 0.5}
    superpixel_features(sdata, **arguments)
    first = encoder.calls
    superpixel_features(sdata, **arguments)
    superpixel_features(read_zarr(tmp_path / "s.zarr"), **arguments)
    sdata.write(tmp_path / "copy.zarr", update_sdata_path=False)
    superpixel_features(read_zarr(tmp_path / "copy.zarr"), **arguments)
    assert encoder.calls == first + 3, "three calls to learn the dimension, none on the image"
    with pytest.raises(ValueError, match="'superpixel_features'.*overwrite=True"):
        superpixel_features(sdata, **arguments, halo_px=32)
    superpixel_features(sdata, **arguments, halo_px=32, overwrite=True)
    assert read_zarr(tmp_path / "s.zarr").attrs["sphistex"]["superpixel_features"]["halo_px"] == 32
    np.testing.assert_array_equal(sdata.images["superpixel_features"], colours)


def test_another_image_of_the_same_size_is_noticed(tmp_path: Path, colours: np.ndarray) -> None:
    sdata = section(colours)
    superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=0.5)
    sdata.images["he"] = section(255 - colours).images["he"]
    with pytest.raises(ValueError, match="overwrite=True"):
        superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=0.5)


@pytest.mark.parametrize("form", ["small", "pyramid", "large"])
def test_a_small_change_of_the_image_is_noticed(
    tmp_path: Path, colours: np.ndarray, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large image without levels only windows are looked at, one of them in its corner."""
    changed = colours.copy()
    place = (0, 0) if form == "large" else (21, 31)
    changed[(slice(None), *place)] = 255 - changed[(slice(None), *place)]
    if form != "small":
        monkeypatch.setattr(features_module, "_READ_QUICKLY", colours.size * 256 // 4)
    for image in (colours, changed):
        picture = image.repeat(16, 1).repeat(16, 2)
        levels = {"scale_factors": [2]} if form == "pyramid" else {}
        sdata = SpatialData(images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"), **levels)})
        superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=0.5)
        np.testing.assert_array_equal(sdata.images["superpixel_features"], image)


def test_bad_input_is_refused_and_changes_nothing(tmp_path: Path, colours: np.ndarray) -> None:
    sdata = section(colours, tmp_path / "s.zarr")
    sdata.labels["mask"] = Labels2DModel.parse(np.ones((9, 9), np.uint8), dims=("y", "x"))

    def refused(error: type[Exception], match: str, **arguments: Any) -> None:
        with pytest.raises(error, match=match):
            superpixel_features(sdata, **({"encoder": MeanColour(), "labels_key": None, "mpp": 0.5} | arguments))

    refused(ValueError, "mpp=", mpp=None)
    refused(ValueError, "mpp=-1", mpp=-1)
    refused(KeyError, "image_key='nothing'", image_key="nothing")
    refused(ValueError, r"labels_key='mask' has shape \(9, 9\).*\(100, 70\)", labels_key="mask")
    refused(ValueError, "key_added='he'.*overwrite=True", key_added="he")
    refused(ValueError, "key_added='mask'.*sdata.labels", key_added="mask", overwrite=True)
    refused(ValueError, "key_added='a b' cannot be stored", key_added="a b")
    refused(ValueError, "halo_px=600", halo_px=600)
    refused(ValueError, "batch_size=0", batch_size=0)
    refused(ValueError, "encoder='nonsense'", encoder="nonsense")
    refused(TypeError, "encoder=7", encoder=7)
    assert set(sdata.images) == set(read_zarr(tmp_path / "s.zarr").images) == {"he"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr"]


def test_a_coarse_image_is_enlarged_with_a_warning() -> None:
    sdata = SpatialData(
        images={"he": Image2DModel.parse(RNG.integers(0, 255, (3, 60, 40), dtype=np.uint8), dims=("c", "y", "x"))}
    )
    with pytest.warns(UserWarning, match="'he' has 2 µm per pixel and is enlarged 4×"):
        superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=2.0)
    assert sdata.images["superpixel_features"].shape == (3, 15, 10)


def test_the_scale_comes_from_the_spots_when_it_is_not_given(colours: np.ndarray) -> None:
    sdata = section(colours)
    xy = np.array([[x, y] for y in (300, 700, 1100) for x in (200, 600, 1000)], dtype=float)
    counts = AnnData(np.ones((9, 2), np.float32))
    picture = np.asarray(sdata.images["he"]).transpose(1, 2, 0)
    spotted = from_spots(picture, counts, xy, spot_diameter_um=100, spot_pitch_um=200)
    superpixel_features(spotted, encoder=MeanColour(), labels_key=None)
    assert spotted.attrs["sphistex"]["superpixel_features"]["mpp"] == pytest.approx(0.5)
    np.testing.assert_array_equal(spotted.images["superpixel_features"], colours)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, colours: np.ndarray) -> None:
    (tmp_path / "file").touch()
    settings.cache_dir = tmp_path / "file" / "cache"
    with pytest.raises(OSError, match="feature map could not be written to .*file/cache"):
        superpixel_features(section(colours), encoder=MeanColour(), labels_key=None, mpp=0.5)


def test_a_finished_map_leaves_attempts_at_other_maps_alone(tmp_path: Path, colours: np.ndarray) -> None:
    other, own = (tmp_path / f".s.zarr.images-{key}-{'0' * 16}" for key in ("map-fine", "map"))
    other.mkdir()
    own.mkdir()
    superpixel_features(
        section(colours, tmp_path / "s.zarr"), encoder=MeanColour(), labels_key=None, mpp=0.5, key_added="map"
    )
    assert other.exists()
    assert not own.exists()


class Noise(MeanColour):
    """Dull at first, then tokens that need room on the disk."""

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        tokens = super().__call__(tiles).repeat(20, axis=-1)
        return tokens if self.calls < 3 else tokens + RNG.normal(size=tokens.shape)

    name, tile_size = "noise", 1024


def test_a_full_disk_leaves_the_store_readable_and_the_next_run_goes_on(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    sdata = section(np.full((3, 192, 128), 100, np.uint8), tmp_path / "s.zarr")
    encoder = Noise()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="feature map could not be written.*goes on where it stopped"):
            superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert set(sdata.images) == set(read_zarr(tmp_path / "s.zarr").images) == {"he"}
    again = Noise()
    superpixel_features(sdata, encoder=again, labels_key=None, mpp=0.5)
    assert again.calls == 6 - 2, "of six chunks, the two that were written are not done again"
    assert np.asarray(read_zarr(tmp_path / "s.zarr").images["superpixel_features"]).all()


INTERRUPTED = textwrap.dedent("""
    import sys, time, warnings
    warnings.simplefilter("ignore")
    import numpy as np
    from spatialdata import read_zarr
    from sphistex.tl.features import superpixel_features

    class Slow:
        name, revision, tile_size, halo_px = "slow", "1", 1024, 0
        calls = -1
        def __call__(self, tiles):
            self.calls += 1
            if self.calls:
                print("call", flush=True)
            time.sleep(0.3 if self.calls else 0)
            return tiles.reshape(len(tiles), 64, 16, 64, 16, 3).mean((2, 4))

    superpixel_features(read_zarr(sys.argv[1]), encoder=Slow(), labels_key=None, mpp=0.5)
""")


def test_killed_in_the_middle_the_next_run_does_nothing_twice(tmp_path: Path) -> None:
    colours = RNG.integers(1, 256, (3, 192, 192), dtype=np.uint8)  # nine chunks
    path = tmp_path / "s.zarr"
    section(colours, path)
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline() == "call\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    (work,) = (entry for entry in tmp_path.iterdir() if entry.name.startswith(".s.zarr.images-superpixel_features-"))
    done = next(work.rglob("done.txt")).read_text().splitlines()
    assert 3 <= len(done) <= 5
    assert set(read_zarr(path).images) == {"he"}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert run.stdout.count("call") == 9 - len(done)
    np.testing.assert_array_equal(read_zarr(path).images["superpixel_features"], colours)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.zarr"]


def test_killed_between_the_map_and_its_record_the_next_run_only_records(tmp_path: Path, colours: np.ndarray) -> None:
    sdata, encoder = section(colours, tmp_path / "s.zarr"), MeanColour()
    superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    params = sdata.attrs["sphistex"].pop("superpixel_features")
    sdata.write_attrs()
    again = read_zarr(tmp_path / "s.zarr")
    assert "superpixel_features" not in again.attrs["sphistex"]
    before = encoder.calls
    superpixel_features(again, encoder=encoder, labels_key=None, mpp=0.5)
    assert encoder.calls == before + 1, "the call to learn the dimension"
    assert read_zarr(tmp_path / "s.zarr").attrs["sphistex"]["superpixel_features"] == params


def test_chunks_are_files_of_their_own(tmp_path: Path, colours: np.ndarray) -> None:
    superpixel_features(section(colours, tmp_path / "s.zarr"), encoder=MeanColour(), labels_key=None, mpp=0.5)
    (_, array), *others = zarr.open_group(tmp_path / "s.zarr/images/superpixel_features", mode="r").arrays()
    assert not others, "a single scale"
    assert array.chunks == (3, 64, 64)
    assert array.shards is None


def test_several_copies_of_an_encoder_make_the_same_map_and_share_the_work(tmp_path: Path, colours: np.ndarray) -> None:
    copies = [MeanColour(), MeanColour(), MeanColour()]
    sdata = section(colours)
    grid, tissue = Grid.over_image((1600, 1120), 0.5), np.ones((100, 70), bool)
    maps = []
    for used in (copies[:1], copies[1:]):
        encoders = [CallableEncoder(copy) for copy in used]
        made = prepare(tmp_path / f"{len(used)}.zarr", "map", grid, {"dim": 3}, {}, beside=None)
        assert fill(made, sdata.images["he"].data, grid, Tiling.of(encoders[0]), tissue, copies=encoders) == 4
        maps.append(ChunkRecord(made).array[:])
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], colours)
    assert copies[1].calls > 0
    assert copies[2].calls > 0


class LimitedMemory(MeanColour):
    """Holds two tiles."""

    tile_size = 64

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        if len(tiles) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().__call__(tiles)


def test_out_of_memory_costs_one_warning(colours: np.ndarray) -> None:
    sdata = section(colours)
    with pytest.warns(UserWarning, match="ran out of memory with 9 tiles at once and gets 2 from now on") as caught:
        superpixel_features(sdata, encoder=LimitedMemory(), labels_key=None, mpp=0.5, batch_size=9)
    assert len(caught) == 1
    np.testing.assert_array_equal(sdata.images["superpixel_features"], colours)


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbled"])
@pytest.mark.parametrize("backed", [True, False])
def test_damaged_chunks_are_made_again(tmp_path: Path, colours: np.ndarray, backed: bool, damage: str) -> None:
    sdata, encoder = section(colours, tmp_path / "s.zarr" if backed else None), MeanColour()
    superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    (chunk,) = tmp_path.rglob("superpixel_features/*/c/0/1/0")
    content = chunk.read_bytes()
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(content[:50] if damage == "truncated" else content[:-9] + bytes(9))
    calls = encoder.calls
    with pytest.warns(UserWarning, match="1 chunks of images.*damaged or missing.*made again"):
        superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    assert encoder.calls == calls + 2, "a call to learn the dimension, and the chunk"
    assert chunk.read_bytes() == content
    np.testing.assert_array_equal(sdata.images["superpixel_features"], colours)


@pytest.mark.parametrize("read_quickly", [True, False], ids=["found at once", "found midway"])
def test_a_damaged_image_is_named_and_nothing_is_lost(
    tmp_path: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch, read_quickly: bool
) -> None:
    if not read_quickly:  # as of a large image, of which only windows are looked at before
        monkeypatch.setattr(features_module, "_READ_QUICKLY", 0)
    sdata, encoder = section(colours, tmp_path / "s.zarr"), MeanColour()
    (chunk,) = tmp_path.rglob("he/*/c/0/3/1")
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="image.* cannot be read .*copy it again") as raised:
        superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    assert ("'he'" if read_quickly else "rows 0 to 1024, columns 0 to") in str(raised.value)
    assert list(read_zarr(tmp_path / "s.zarr").images) == ["he"]
    chunk.write_bytes(content)
    superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    np.testing.assert_array_equal(sdata.images["superpixel_features"], colours)


def test_what_an_interrupted_run_left_damaged_is_made_again(tmp_path: Path) -> None:
    colours = RNG.integers(1, 256, (3, 100, 70), dtype=np.uint8)
    path, encoder = tmp_path / "s.zarr", MeanColour()
    sdata = section(colours, path)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "put_in_place", stop)
        superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    (work,) = (entry for entry in tmp_path.iterdir() if entry != path)
    next(work.rglob("c/0/1/0")).write_bytes(b"")
    next(work.rglob("c/0/0/0")).unlink()
    calls = encoder.calls
    superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    assert encoder.calls == calls + 3
    np.testing.assert_array_equal(read_zarr(path).images["superpixel_features"], colours)


def test_a_chunk_of_zeros_has_no_file_and_is_not_taken_for_lost(tmp_path: Path) -> None:
    sdata, encoder = section(np.zeros((3, 30, 30), np.uint8), tmp_path / "s.zarr"), MeanColour()
    superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    superpixel_features(sdata, encoder=encoder, labels_key=None, mpp=0.5)
    assert encoder.calls == 1 + 1, "the chunk, and twice a call to learn the dimension"
    store.check_complete(sdata, "superpixel_features")


@pytest.mark.parametrize("backed", [True, False])
def test_a_map_that_was_damaged_is_not_read(tmp_path: Path, colours: np.ndarray, backed: bool) -> None:
    sdata = section(colours, tmp_path / "s.zarr" if backed else None)
    superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=0.5)
    store.check_complete(sdata, "superpixel_features")
    (chunk,) = tmp_path.rglob("superpixel_features/*/c/0/1/0")
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-9] + bytes(9))
    with pytest.raises(OSError, match=r"1 files, such as .*c/0/1/0.*sphistex.tl.superpixel_features"):
        store.check_complete(sdata, "superpixel_features")
    chunk.unlink()
    with pytest.raises(OSError, match=r"1 files, such as .*c/0/1/0.*sphistex.tl.superpixel_features"):
        store.check_complete(sdata, "superpixel_features")


@pytest.mark.parametrize("backed", [True, False])
def test_a_map_that_is_gone_is_not_read_and_is_made_again(tmp_path: Path, colours: np.ndarray, backed: bool) -> None:
    sdata = section(colours, tmp_path / "s.zarr" if backed else None)
    superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=0.5)
    (element,) = tmp_path.rglob("superpixel_features")
    shutil.rmtree(element if backed else settings.cache_dir)  # a cache may be emptied at any time
    with pytest.raises(OSError, match="lost or damaged on disk"):
        store.check_complete(sdata, "superpixel_features")
    with pytest.warns(UserWarning, match="was gone from disk .* and has been made again"):
        superpixel_features(sdata, encoder=MeanColour(), labels_key=None, mpp=0.5)
    store.check_complete(sdata, "superpixel_features")
    np.testing.assert_array_equal(sdata.images["superpixel_features"], colours)


KILLED = textwrap.dedent("""
    import sys, time, warnings
    warnings.simplefilter("ignore")
    from spatialdata import read_zarr
    from sphistex.tl.features import superpixel_features

    def encode(tiles):
        time.sleep(0.02 * (len(tiles) and tiles.any()))
        return tiles.reshape(len(tiles), 4, 16, 4, 16, 3).mean((2, 4))

    encode.tile_size, encode.halo_px, encode.revision = 64, 0, "1"
    superpixel_features(read_zarr({path!r}), encoder=encode, labels_key=None, mpp=0.5, batch_size=64)
""")


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_ends_with_the_same_map(tmp_path: Path) -> None:
    """At least 20 kills; a process is forked from one that has imported everything, so that kills hit the work."""
    processes, rng, kills, duration = multiprocessing.get_context("forkserver"), np.random.default_rng(0), 0, np.inf
    processes.set_forkserver_preload(["sphistex.tl.features", "sphistex.encoders.adapters"])
    path = tmp_path / "s.zarr"
    colours: np.ndarray = np.empty(0)
    while kills < 20 or path.exists():
        if not path.exists():
            colours = rng.integers(1, 256, (3, 192, 192), dtype=np.uint8)  # nine chunks
            section(colours, path)
        process, start = processes.Process(target=exec, args=(KILLED.format(path=str(path)), {})), time.monotonic()
        process.start()
        process.join(rng.uniform(0, duration) if duration < np.inf and kills < 20 else None)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            read_zarr(path)
            continue
        assert process.exitcode == 0
        duration = min(duration, time.monotonic() - start)  # the first one waits for the imports
        finished = read_zarr(path)
        np.testing.assert_array_equal(finished.images["superpixel_features"], colours)
        assert "superpixel_features" in finished.attrs["sphistex"]
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.zarr"]
        shutil.rmtree(path)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import resource, sys
        import dask.array as da
        import numpy as np
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel
        from sphistex.settings import settings
        from sphistex.tl.features import superpixel_features

        settings.cache_dir, side = sys.argv[1], int(sys.argv[2])
        image = da.random.default_rng(0).integers(0, 255, (3, side, side), dtype=np.uint8, chunks=(3, 1024, 1024))
        sdata = SpatialData(images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))})

        def encode(tiles):
            return tiles.reshape(len(tiles), 64, 16, 64, 16, 3).mean((2, 4)).repeat(50, axis=-1)

        encode.tile_size, encode.halo_px = 1024, 0
        superpixel_features(sdata, encoder=encode, labels_key=None, mpp=0.5)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """)
    peaks = []
    for side in (4096, 16384):
        command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path), str(side)]
        peaks.append(int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    assert peaks[1] < 1.15 * peaks[0]
