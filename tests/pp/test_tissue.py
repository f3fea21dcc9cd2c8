"""Tissue is found whatever the colour of the glass, lies where it is in the image, and is cut nowhere."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path

import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from shapely.geometry import box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Affine, Scale, get_transformation

from sphistex.datasets import simulate
from sphistex.grid import Grid
from sphistex.io import from_spots
from sphistex.io.images import open_image
from sphistex.pp.tissue import on_tissue, tissue_mask

MPP = 0.5
PX = 16  # of a superpixel


def slide(inside: NDArray[np.bool_], glass: tuple[int, int, int] = (240, 240, 240), seed: int = 0) -> NDArray[np.uint8]:
    """H&E-like noise where ``inside`` (superpixels), slightly noisy glass elsewhere, (c, y, x)."""
    rng = np.random.default_rng(seed)
    full = inside.repeat(PX, 0).repeat(PX, 1)
    picture = np.asarray(glass)[:, None, None] + rng.normal(0, 1.5, (3, *full.shape))
    coarse = rng.normal(0, 40, (3, full.shape[0] // 4, full.shape[1] // 4)).repeat(4, 1).repeat(4, 2)
    stained = np.array([170, 110, 160])[:, None, None] + coarse
    return np.where(full, stained, picture).clip(0, 255).astype(np.uint8)


def disk_of(shape: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    y, x = np.indices(shape)
    return (y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2 < radius**2


def detect(picture: NDArray[np.uint8], mpp: float = MPP, **parse: object) -> NDArray[np.bool_]:
    sdata = SpatialData(images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"), **parse)})
    tissue_mask(sdata, mpp=mpp)
    return sdata.labels["tissue"].to_numpy() > 0


def iou(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> float:
    return float((one & two).sum() / (one | two).sum())


@pytest.mark.parametrize("glass", [(240, 240, 240), (240, 200, 225), (215, 215, 235)], ids=["white", "pink", "blue"])
def test_tissue_is_found_on_glass_of_any_colour(glass: tuple[int, int, int]) -> None:
    truth = disk_of((90, 110), 30)
    assert iou(detect(slide(truth, glass)), truth) > 0.93


def test_faint_printed_spots_and_haze_are_no_tissue() -> None:
    truth = disk_of((110, 110), 30)
    picture = slide(truth, (235, 215, 230)).astype(float)
    y, x = np.indices(picture.shape[1:])
    printed = np.hypot(x % 400 - 200, y % 400 - 200) < 90
    haze = 25 * np.exp(-((x - 1500) ** 2 + (y - 900) ** 2) / 2 / 300**2)
    picture[:, ~truth.repeat(PX, 0).repeat(PX, 1)] -= (8 * printed + haze)[~truth.repeat(PX, 0).repeat(PX, 1)]
    assert iou(detect(picture.clip(0, 255).astype(np.uint8)), truth) > 0.93


def test_a_section_without_glass_is_tissue_all_over() -> None:
    inside = np.ones((60, 70), dtype=bool)
    inside[30:35, 30:35] = False  # a vessel
    assert detect(slide(inside)).all()


def test_small_holes_are_filled_and_debris_is_dropped() -> None:
    truth = disk_of((100, 100), 30)
    seen = truth.copy()
    seen[45:55, 45:55] = False
    seen[5:8, 5:8] = True
    found = detect(slide(seen))
    assert found[45:55, 45:55].all()
    assert not found[:12, :12].any()


def test_levels_of_the_image_give_the_same_mask() -> None:
    truth = disk_of((60, 60), 20)
    picture = slide(truth)
    levels = detect(picture.repeat(2, 1).repeat(2, 2), mpp=MPP / 2, scale_factors=[2, 2])
    assert iou(levels, detect(picture)) > 0.93


def test_memory_does_not_grow_with_the_image() -> None:
    tile = slide(disk_of((64, 64), 25))

    def peak(tiles: int) -> int:
        picture = da.concatenate(
            [da.map_blocks(lambda: tile, chunks=((3,), (1024,), (1024,)), dtype=np.uint8)] * tiles, 1
        )
        sdata = SpatialData(images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"), chunks=(3, 1024, 1024))})
        tracemalloc.start()
        with dask.config.set(scheduler="synchronous"):
            tissue_mask(sdata, mpp=MPP)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sdata.labels["tissue"].shape == (64 * tiles, 64)
        return most

    assert peak(32) < 1.5 * peak(2)


def test_the_mask_lies_on_the_image_in_every_coordinate_system() -> None:
    turned = Affine(np.array([[0, -2, 5], [2, 0, 7], [0, 0, 1.0]]), ("x", "y"), ("x", "y"))
    systems = {"slide": turned, "microns": Scale([MPP, MPP], axes=("x", "y"))}
    picture = slide(disk_of((60, 60), 20))
    sdata = SpatialData(images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"), transformations=systems)})
    tissue_mask(sdata, mpp=MPP)
    grid = Grid.over_image(picture.shape[1:], MPP)
    for name, transform in systems.items():
        got = get_transformation(sdata.labels["tissue"], to_coordinate_system=name).to_affine_matrix(
            ("x", "y"), ("x", "y")
        )
        np.testing.assert_allclose(got, transform.to_affine_matrix(("x", "y"), ("x", "y")) @ grid.to_image)


def with_spots(inside: NDArray[np.bool_]) -> SpatialData:
    size = np.array(inside.shape[::-1]) * PX
    xy = np.array([[x, y] for y in range(100, size[1], 200) for x in range(100, size[0], 200)], dtype=float)
    counts = AnnData(np.ones((len(xy), 2), dtype=np.float32))
    return from_spots(slide(inside), counts, xy, spot_diameter_um=55, spot_pitch_um=100)


def test_shares_are_reported_and_a_doubtful_mask_warns(caplog: pytest.LogCaptureFixture) -> None:
    sdata = with_spots(np.ones((100, 100), dtype=bool))
    with caplog.at_level(logging.INFO, "sphistex"):
        tissue_mask(sdata)
    assert "100.0% of the area is tissue; 100.0% of the spots" in caplog.text
    mine = np.zeros((100, 100), dtype=bool)
    mine[:20] = True
    with pytest.warns(UserWarning, match="20.0% of the area.*Is the mask right"):
        tissue_mask(sdata, mask=mine, key_added="mine")


def test_the_users_own_mask_in_every_form() -> None:
    truth = disk_of((64, 48), 15)
    truth[2:5, 2:5] = True  # kept as given
    picture = slide(truth)
    size = picture.shape[1:]
    labels = Labels2DModel.parse(
        truth.repeat(4, 0).repeat(4, 1).astype(np.int32) * 7,
        dims=("y", "x"),
        transformations={"global": Scale([4, 4], axes=("x", "y"))},
    )
    squares = [box(x, y, x + 1, y + 1) for y, x in np.argwhere(truth)]
    outline = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=squares), transformations={"global": Scale([PX, PX], axes=("x", "y"))}
    )
    sdata = SpatialData(
        images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"))},
        labels={"annotation": labels},
        shapes={"outline": outline},
    )
    for mask in (truth, truth.astype(int) * 3, truth.repeat(PX, 0).repeat(PX, 1), "annotation", "outline"):
        tissue_mask(sdata, mask=mask, mpp=MPP, overwrite=True)
        np.testing.assert_array_equal(sdata.labels["tissue"].to_numpy() > 0, truth)

    with pytest.raises(ValueError, match=rf"\(3, 3\).*\(64, 48\).*{size[0]}, {size[1]}"):
        tissue_mask(sdata, mask=np.ones((3, 3)), mpp=MPP, key_added="other")
    with pytest.raises(KeyError, match="'absent'.*'annotation'.*'outline'"):
        tissue_mask(sdata, mask="absent", mpp=MPP, key_added="other")
    with pytest.raises(ValueError, match="empty"):
        tissue_mask(sdata, mask=np.zeros((64, 48)), mpp=MPP, key_added="other")
    assert "other" not in sdata


def test_what_exists_is_not_replaced_unasked() -> None:
    sdata = with_spots(np.ones((40, 40), dtype=bool))
    tissue_mask(sdata)
    with pytest.raises(ValueError, match="'tissue'.*overwrite=True"):
        tissue_mask(sdata)
    tissue_mask(sdata, overwrite=True)
    with pytest.raises(ValueError, match="'spots'"):
        tissue_mask(sdata, key_added="spots", overwrite=True)


def test_without_spots_the_scale_must_be_given() -> None:
    sdata = SpatialData(images={"he": Image2DModel.parse(slide(disk_of((30, 30), 9)), dims=("c", "y", "x"))})
    with pytest.raises(ValueError, match="mpp="):
        tissue_mask(sdata)


def test_simulated_tissue_with_fat_and_ducts() -> None:
    sdata = simulate(size_um=1000, n_genes=5, seed=2)
    tissue_mask(sdata)
    assert iou(sdata.labels["tissue"].to_numpy() > 0, sdata.labels["truth_labels"].to_numpy() > 0) > 0.93


@pytest.mark.real_data
def test_her2st_spots_lie_on_tissue_and_the_printed_ones_around_it_do_not(data_dir: Path) -> None:
    """Pathologists' selection of spots against the mask; the glass is pink, hazy and dotted with printed spots."""
    folder = data_dir / "her2st"
    spots = pd.read_csv(folder / "C3_selection.tsv", sep="\t")
    top, left, height, width = 600, 300, 5600, 7200
    centres = spots[["pixel_x", "pixel_y"]] - [left, top]
    spots[["pixel_x", "pixel_y"]] = centres
    cropped = open_image(folder / "C3.jpg")[:, top : top + height, left : left + width]
    counts = AnnData(np.ones((len(spots), 2), dtype=np.float32))
    sdata = from_spots(cropped, counts, centres, spot_diameter_um=100, spot_pitch_um=200)
    tissue_mask(sdata)

    tissue = sdata.labels["tissue"].to_numpy()
    grid = Grid(tissue.shape, mpp=8 / get_transformation(sdata.labels["tissue"]).to_affine_matrix(("x",), ("x",))[0, 0])
    assert on_tissue(tissue, grid, centres).mean() > 0.98
    (pitch_x, start_x), (pitch_y, start_y) = (np.polyfit(spots[axis], spots[f"pixel_{axis}"], 1) for axis in "xy")
    array = np.argwhere(np.ones((34, 36)))
    around = array[~(array[:, None] == spots[["x", "y"]].to_numpy()).all(-1).any(1)] * [pitch_x, pitch_y] + [
        start_x,
        start_y,
    ]
    around = around[((around > 0) & (around < [width, height])).all(1)]
    assert len(around) > 200
    assert on_tissue(tissue, grid, around).mean() < 0.05


@pytest.mark.real_data
def test_kidney_is_tissue_all_over(data_dir: Path) -> None:
    picture = open_image(data_dir / "visium_hd_kidney" / "he.png")
    sdata = SpatialData(images={"he": Image2DModel.parse(picture)})
    tissue_mask(sdata, mpp=2.0)
    assert sdata.labels["tissue"].to_numpy().all()


@pytest.mark.parametrize("noise", [0, 4])
def test_bare_glass_is_no_tissue(noise: int) -> None:
    picture = np.random.default_rng(0).normal(238, noise, (3, 1200, 1200)).clip(0, 255).astype(np.uint8)
    with pytest.raises(ValueError, match="no superpixel is tissue"):
        detect(picture)


def test_pixels_larger_than_superpixels_are_refused() -> None:
    with pytest.raises(ValueError, match="mpp=12.*larger than a superpixel"):
        detect(slide(disk_of((90, 110), 30), (240, 240, 240)), mpp=12.0)
