"""Pictures are opened lazily, with their channels where they belong."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
from PIL import Image
from xarray import DataArray

from sphistex.io import images
from sphistex.io.images import open_image

PIXELS = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "form",
    [
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        da.from_array(PIXELS),
        DataArray(PIXELS.transpose(1, 0, 2), dims=("x", "y", "c")),
    ],
    ids=["yxc", "cyx", "dask", "xarray"],
)
def test_every_form_is_the_same_picture(form: Any) -> None:
    opened = open_image(form)
    assert opened.dims == ("c", "y", "x")
    np.testing.assert_array_equal(opened, PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "name", ["plain.tif", "strips.tif", "tiles.tiff", "planar.tif", "pyramid.ome.tif", "picture.png"]
)
def test_files_hold_the_same_picture(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "picture.png":
        Image.fromarray(PIXELS).save(path)
    elif name == "pyramid.ome.tif":
        with tifffile.TiffWriter(path, ome=True) as file:
            file.write(PIXELS, subifds=1, tile=(32, 32), photometric="rgb")
            file.write(PIXELS[::2, ::2], subfiletype=1, tile=(32, 32), photometric="rgb")
    elif name == "planar.tif":
        tifffile.imwrite(path, PIXELS.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    else:
        form: dict[str, Any] = {
            "tiles.tiff": {"tile": (32, 32)},
            "strips.tif": {"rowsperstrip": 8, "compression": "zlib"},
        }
        tifffile.imwrite(path, PIXELS, photometric="rgb", **form.get(name, {}))
    np.testing.assert_array_equal(open_image(path), PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize("form", [{"tile": (256, 256), "compression": "zlib"}, {}], ids=["tiles", "one piece"])
def test_of_a_tiff_only_the_part_asked_for_is_read(tmp_path: Path, form: dict[str, Any]) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.zeros((4096, 4096, 3), np.uint8), photometric="rgb", **form)
    tracemalloc.start()
    open_image(path)[:, 3080:3180, 3080:3180].compute()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4096 * 4096 * 3 / 4


def test_picture_too_large_to_be_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(PIXELS).save(path)
    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(images, "_MAX_DECODED_PX", 1000)
    with pytest.raises(ValueError, match="more than 1,000 px.*tiled TIFF"):
        open_image(path)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.png"):
        open_image(tmp_path / "absent.png")
    for name in ("text.png", "text.tif"):
        (tmp_path / name).write_text("no picture")
        with pytest.raises(ValueError, match=f"{name}.*cannot be read"):
            open_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"\(90, 120\).*colour image"):
        open_image(PIXELS[..., 0])
    with pytest.raises(ValueError, match="first or last"):
        open_image(PIXELS.transpose(0, 2, 1))


@pytest.mark.parametrize(("name", "mode"), [("inks.jpg", "CMYK"), ("palette.png", "P"), ("palette.gif", "P")])
def test_colours_that_are_stored_otherwise_become_rgb(tmp_path: Path, name: str, mode: str) -> None:
    picture = np.full((40, 50, 3), (200, 100, 160), dtype=np.uint8)
    Image.fromarray(picture).convert(mode).save(tmp_path / name)
    opened = np.asarray(open_image(tmp_path / name)).transpose(1, 2, 0)
    assert opened.shape == picture.shape
    np.testing.assert_allclose(opened.mean((0, 1)), picture.mean((0, 1)), atol=15)  # a palette's are dithered


@pytest.mark.parametrize("mode", ["CMYK", "P"])
def test_tiffs_of_other_colours_are_refused(tmp_path: Path, mode: str) -> None:
    Image.fromarray(PIXELS).convert(mode).save(tmp_path / "picture.tif")
    with pytest.raises(ValueError, match="not as red, green and blue"):
        open_image(tmp_path / "picture.tif")
