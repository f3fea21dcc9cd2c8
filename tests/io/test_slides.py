"""A slide and nothing else: whole-slide files are opened lazily, with their own levels and their own scale."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr.writer import write_image, write_multiscale
from PIL import Image
from spatialdata import SpatialData, get_pyramid_levels, read_zarr

from sphistex._section import resolve_image
from sphistex.io import read_image
from sphistex.pp.tissue import tissue_mask
from sphistex.settings import settings
from sphistex.tl.features import superpixel_features

MPP = 0.4
_TILES: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}


def save_ome_tiff(path: Path, levels: list[np.ndarray], mpp: float) -> None:
    """Levels in SubIFDs, the size of a pixel in OME-XML."""
    size = {f"PhysicalSize{axis}{unit}": value for axis in "XY" for unit, value in (("", mpp), ("Unit", "µm"))}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(levels[0], subifds=len(levels) - 1, metadata=size, **_TILES)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **_TILES)


def save_svs(path: Path, levels: list[np.ndarray], mpp: float) -> None:
    """Levels as pages of the baseline series, between them a thumbnail, after them a label, as Aperio has them."""
    head = "Aperio Image Library v11.2.1 \r\n"
    with tifffile.TiffWriter(path) as file:
        file.write(levels[0], description=f"{head}baseline|AppMag = 20|MPP = {mpp}", metadata=None, **_TILES)
        file.write(levels[-1], description=f"{head}thumbnail", photometric="rgb", metadata=None)
        for level in levels[1:]:
            file.write(level, description=f"{head}level|AppMag = 20", metadata=None, **_TILES)
        file.write(levels[-1][:50, :50], description=f"{head}label", subfiletype=1, photometric="rgb", metadata=None)


def save_ome_zarr(path: Path, levels: list[np.ndarray], mpp: float) -> None:
    axes: list[dict[str, str]] = [
        {"name": "c", "type": "channel"},
        *({"name": name, "type": "space", "unit": "micrometer"} for name in "yx"),
    ]
    steps = [[1.0, *(mpp * levels[0].shape[axis] / level.shape[axis] for axis in (0, 1))] for level in levels]
    group = zarr.open_group(path, mode="w")
    write_multiscale(
        [level.transpose(2, 0, 1) for level in levels],
        group,
        axes=axes,
        coordinate_transformations=[[{"type": "scale", "scale": step}] for step in steps],
        storage_options={"chunks": (3, 256, 256)},
    )
    written: Any = group.attrs.asdict()  # not every version of ome-zarr writes the units
    written.get("ome", written)["multiscales"][0]["axes"] = axes
    group.attrs.update(written)


PYRAMIDS: dict[str, Callable[[Path, list[np.ndarray], float], None]] = {
    "slide.ome.tif": save_ome_tiff,
    "slide.svs": save_svs,
    "slide.ome.zarr": save_ome_zarr,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = settings.cache_dir, settings.progress
    settings.cache_dir, settings.progress = tmp_path / "cache", False
    yield
    settings.cache_dir, settings.progress = before


@pytest.fixture(scope="module")
def levels() -> list[np.ndarray]:
    """A piece of tissue on glass at full resolution, at about a half and about a quarter."""
    rng = np.random.default_rng(0)
    picture = np.full((1500, 2001, 3), 240, np.uint8)
    picture[400:1200, 500:1500] = rng.integers(60, 200, (800, 1000, 3))
    return [picture, picture[::2, ::2], picture[1::4, 1::4]]


def images_of(sdata: SpatialData) -> list[np.ndarray]:
    return [np.asarray(level).transpose(1, 2, 0) for level in get_pyramid_levels(sdata.images["image"])]


@pytest.mark.parametrize("name", PYRAMIDS)
def test_levels_and_scale_are_those_of_the_file(tmp_path: Path, levels: list[np.ndarray], name: str) -> None:
    PYRAMIDS[name](tmp_path / name, levels, MPP)
    sdata = read_image(tmp_path / name)
    for found, expected in zip(images_of(sdata), levels, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert sdata.attrs["sphistex"]["input"]["image"]["mpp"] == pytest.approx(MPP)
    assert read_image(tmp_path / name, mpp=1.5).attrs["sphistex"]["input"]["image"]["mpp"] == 1.5


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_slide_survives_a_round_trip_through_disk(tmp_path: Path, levels: list[np.ndarray], name: str) -> None:
    PYRAMIDS[name](tmp_path / name, levels, MPP)
    read_image(tmp_path / name).write(tmp_path / "s.zarr")
    again = read_zarr(tmp_path / "s.zarr")
    for found, expected in zip(images_of(again), levels, strict=True):
        np.testing.assert_array_equal(found, expected)
    tissue_mask(again)
    assert again.labels["tissue"].shape == (75, 100)


def spoil(path: Path, levels: list[np.ndarray], level: int, keep: slice) -> None:
    """Overwrite the tiles of one level with what cannot be decoded, except for those in the kept rows and columns."""
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[level].keyframe
        across = -(-levels[level].shape[1] // 256)
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for number, (offset, size) in enumerate(places):
            row, column = divmod(number, across)
            if not (keep.start <= row < keep.stop and keep.start <= column < keep.stop):
                file.seek(offset)
                file.write(b"\xff" * size)


@pytest.mark.parametrize("name", ["slide.ome.tif", "slide.svs"])
def test_only_the_tiles_asked_for_are_decoded(tmp_path: Path, levels: list[np.ndarray], name: str) -> None:
    PYRAMIDS[name](tmp_path / name, levels, MPP)
    spoil(tmp_path / name, levels, 0, slice(2, 4))
    _, image, _ = resolve_image(read_image(tmp_path / name))
    part = image[:, 512:1024, 600:900]
    np.testing.assert_array_equal(np.asarray(part).transpose(1, 2, 0), levels[0][512:1024, 600:900])
    with pytest.raises(Exception, match="."):
        image[:, 500:1024, 600:900].compute()


def test_tissue_is_looked_for_on_a_coarse_level(tmp_path: Path, levels: list[np.ndarray]) -> None:
    path = tmp_path / "slide.svs"
    save_svs(path, levels, MPP)
    spoil(path, levels, 0, slice(0, 0))
    sdata = read_image(path)
    tissue_mask(sdata)
    tissue = np.asarray(sdata.labels["tissue"])
    assert tissue[22:58, 27:73].all()
    assert not tissue[:16].any()


def colours(tiles: np.ndarray) -> np.ndarray:
    return tiles.reshape(len(tiles), 14, 16, 14, 16, 3).mean((2, 4))


def test_features_do_not_depend_on_the_form_of_the_slide(tmp_path: Path, levels: list[np.ndarray]) -> None:
    Image.fromarray(levels[0]).save(tmp_path / "slide.png")
    for name, save in PYRAMIDS.items():
        save(tmp_path / name, levels, MPP)
    forms: list[Any] = [levels[0], *(tmp_path / name for name in ("slide.png", *PYRAMIDS))]
    maps: list[np.ndarray] = []
    for form in forms:
        sdata = read_image(form, mpp=MPP)
        superpixel_features(sdata, encoder=colours, labels_key=None, key_added=(key := f"map{len(maps)}"))
        maps.append(np.asarray(sdata.images[key]))
    assert np.ptp(maps[0]) > 100
    for other in maps[1:]:
        np.testing.assert_array_equal(other, maps[0])


def test_a_slide_tells_its_scale(tmp_path: Path, levels: list[np.ndarray]) -> None:
    save_svs(tmp_path / "slide.svs", levels, MPP)
    sdata = read_image(tmp_path / "slide.svs")
    superpixel_features(sdata, encoder=colours)
    assert sdata.images["superpixel_features"].shape == (3, 75, 100)
    assert sdata.attrs["sphistex"]["superpixel_features"]["mpp"] == pytest.approx(MPP)


@pytest.mark.parametrize(("per_cm", "unit", "mpp"), [(25_000, 3, 0.4), (300, 2, None), (25_000, 1, None)])
def test_resolution_of_a_plain_tiff_is_its_scale_unless_it_is_for_printers(
    tmp_path: Path, levels: list[np.ndarray], per_cm: int, unit: int, mpp: float | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", levels[0], resolution=(per_cm, per_cm), resolutionunit=unit, **_TILES)
    noted = read_image(tmp_path / "a.tif").attrs["sphistex"]["input"] if mpp else read_image(tmp_path / "a.tif").attrs
    assert noted["image"]["mpp"] == pytest.approx(mpp) if mpp else "input" not in noted.get("sphistex", {})


@pytest.mark.parametrize("name", PYRAMIDS)
def test_another_process_opens_the_file_by_its_path(tmp_path: Path, levels: list[np.ndarray], name: str) -> None:
    PYRAMIDS[name](tmp_path / name, levels, MPP)
    image = get_pyramid_levels(read_image(tmp_path / name).images["image"], n=0).data[:, 700:800, 900:1000]
    packed = cloudpickle.dumps(image)
    assert len(packed) < 20_000
    np.testing.assert_array_equal(pickle.loads(packed), levels[0][700:800, 900:1000].transpose(2, 0, 1))


def test_what_cannot_be_used(tmp_path: Path) -> None:
    for mpp in (0, -1, np.nan, 500):
        with pytest.raises(ValueError, match=f"mpp={mpp}"):
            read_image(np.zeros((20, 20, 3), np.uint8), mpp=mpp)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder.*no OME-Zarr image"):
        read_image(tmp_path / "folder")
    stack = np.zeros((3, 4, 64, 64), np.uint8)
    write_image(stack, zarr.open_group(tmp_path / "stack.zarr", mode="w"), axes="czyx", scale_factors=[])
    with pytest.raises(ValueError, match=r"stack.zarr.*'z': 4.*single plane"):
        read_image(tmp_path / "stack.zarr")


def test_a_format_of_a_scanner_names_the_extra(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wsidata", None)
        (tmp_path / "slide.mrxs").touch()
        with pytest.raises(ImportError, match=r"slide.mrxs.*pip install 'sphistex\[wsi\]'"):
            read_image(tmp_path / "slide.mrxs")
