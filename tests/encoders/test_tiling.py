"""Every token is about exactly its own superpixel, whatever the resolution, the tile or the halo."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from sphistex.encoders.adapters import CallableEncoder
from sphistex.encoders.batching import Batches
from sphistex.encoders.tiling import Tiling
from sphistex.encoders.window import Window, read_pixels
from sphistex.grid import Grid

RNG = np.random.default_rng(0)


def mean_colour(tiles: np.ndarray) -> np.ndarray:
    n, height, width, _ = tiles.shape
    return tiles.reshape(n, height // 16, 16, width // 16, 16, 3).mean((2, 4))


def surroundings(tiles: np.ndarray) -> np.ndarray:
    """Mean colour of 5 × 5 patches: a token that needs two patches around its own."""
    return uniform_filter(mean_colour(tiles), size=(1, 5, 5, 1), mode="constant")


def encoder(function, tile_size: int, halo_px: int = 0) -> CallableEncoder:
    def encode(tiles: np.ndarray) -> np.ndarray:
        return function(tiles)

    encode.tile_size, encode.halo_px = tile_size, halo_px  # type: ignore[attr-defined]
    return CallableEncoder(encode)


def read_window(image: Any, scale: float, corner: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    window = Window.of(image.shape, scale, corner, shape)
    return window.resampled(read_pixels(window.of_image(image)))


def feature_map(
    image: np.ndarray,
    mpp: float,
    tiling: Tiling,
    chunk: int,
    tissue: np.ndarray | None = None,
    batch_size: int | None = None,
) -> np.ndarray:
    batches = Batches(tiling.encoder, batch_size)
    grid = Grid.over_image(image.shape[1:], mpp)
    tissue = np.ones(grid.shape, bool) if tissue is None else tissue
    out = np.full((tiling.encoder.dim, *grid.shape), np.nan)
    for top in range(0, grid.shape[0], chunk):
        for left in range(0, grid.shape[1], chunk):
            rows, columns = (slice(a, min(a + chunk, n)) for a, n in zip((top, left), grid.shape, strict=True))
            block = tiling.block(rows, columns, tissue)
            window = tiling.window(image.shape, mpp, block)
            tiles = tiling.cut(window.resampled(window.of_image(image)), block) if block.tiles else []
            out[:, rows, columns] = tiling.join(batches(tiles), block, tissue)
    return out


def plane(shape: tuple[int, int], slope_y: float, slope_x: float) -> np.ndarray:
    """Image (3, h, w) whose value at a point (in px) is 20 + slope_y y + slope_x x."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return np.round(np.stack([20 + slope_y * y + slope_x * x, 20 + slope_y * y, 20 + slope_x * x])).astype(np.uint8)


@pytest.mark.parametrize(("tile_size", "halo_px"), [(224, 0), (224, 32), (224, 17), (80, 16), (1024, 96)])
def test_a_mosaic_with_one_colour_per_superpixel_comes_out_exactly(tile_size: int, halo_px: int) -> None:
    colours = RNG.integers(0, 256, (3, 37, 23), dtype=np.uint8)
    tiling = Tiling.of(encoder(mean_colour, tile_size, halo_px))
    found = feature_map(colours.repeat(16, 1).repeat(16, 2), 0.5, tiling, chunk=20)
    np.testing.assert_array_equal(found, colours)


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.73, 1.1, 2.0])
def test_values_belong_to_the_centre_of_the_superpixel_at_any_resolution(mpp: float) -> None:
    shape = (int(311 / mpp), int(229 / mpp))  # µm over µm per px: not a whole number of superpixels
    slopes = 150 / shape[0], 80 / shape[1]
    found = feature_map(plane(shape, *slopes), mpp, Tiling.of(encoder(mean_colour, 224, 32)), chunk=16)
    grid = Grid.over_image(shape, mpp)
    rows, columns = np.indices(grid.shape)
    x, y = grid.centres_px(rows.ravel(), columns.ravel()).T.reshape(2, *grid.shape)
    expected = 20 + np.stack([slopes[0] * y + slopes[1] * x, slopes[0] * y, slopes[1] * x])
    inner = np.s_[:, 1:-2, 1:-2]  # at the border the mirrored image is not a plane
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.6)  # grey levels; the image itself is rounded


@pytest.mark.parametrize(("tile_size", "chunk"), [(224, 64), (224, 16), (144, 20), (1600, 64)])
def test_tokens_see_their_surroundings_across_tile_borders(tile_size: int, chunk: int) -> None:
    image = RNG.integers(0, 256, (3, 700, 500), dtype=np.uint8)
    found = feature_map(image, 0.5, Tiling.of(encoder(surroundings, tile_size, 32)), chunk)
    mirrored = np.pad(image, [(0, 0), (64, 68), (64, 76)], mode="symmetric")
    whole = surroundings(mirrored.transpose(1, 2, 0)[None])[0].transpose(2, 0, 1)[:, 4:-4, 4:-4]
    np.testing.assert_allclose(found, whole[:, : found.shape[1], : found.shape[2]], atol=0.1)


def test_outside_the_tissue_is_zero_and_tiles_without_tissue_are_not_encoded() -> None:
    image = RNG.integers(1, 256, (3, 640, 640), dtype=np.uint8)
    tissue = np.zeros((40, 40), bool)
    tissue[3:9, 30:37] = True
    seen = []

    def counting(tiles: np.ndarray) -> np.ndarray:
        seen.append(len(tiles))
        return mean_colour(tiles)

    found = feature_map(image, 0.5, Tiling.of(encoder(counting, 160)), chunk=20, tissue=tissue)
    assert (found[:, ~tissue] == 0).all()
    assert (found[:, tissue] > 0).all()
    assert seen == [1, 1], "a call to learn the dimension, and the one tile of 10 × 10 superpixels with the tissue"


def test_batches_hold_at_most_that_many_tiles() -> None:
    sizes = []

    def counting(tiles: np.ndarray) -> np.ndarray:
        sizes.append(len(tiles))
        return mean_colour(tiles)

    image = RNG.integers(0, 256, (3, 640, 640), dtype=np.uint8)
    feature_map(image, 0.5, Tiling.of(encoder(counting, 160)), 40, batch_size=3)
    assert sizes[1:] == [3, 3, 3, 3, 3, 1]


@pytest.mark.parametrize("halo_px", [-1, 112, 500, 2.5, "wide"])
def test_a_halo_that_leaves_nothing_is_refused(halo_px: Any) -> None:
    with pytest.raises(ValueError, match=f"halo_px={halo_px!r} must be"):
        Tiling.of(encoder(mean_colour, 224), halo_px=halo_px)


def test_tokens_that_are_not_finite_are_refused() -> None:
    broken = encoder(lambda tiles: mean_colour(tiles) / (tiles.max() == 0), 224)
    with pytest.raises(ValueError, match="not finite"), np.errstate(divide="ignore"):
        feature_map(RNG.integers(0, 256, (3, 64, 64), dtype=np.uint8), 0.5, Tiling.of(broken), 64)


def test_a_window_reads_only_what_it_needs() -> None:
    read = []

    def chunk(block_info=None) -> np.ndarray:
        read.append(block_info[None]["chunk-location"][1:])
        return np.zeros((3, 100, 100), np.uint8)

    image = da.map_blocks(
        chunk, chunks=((3,), (100,) * 10, (100,) * 10), dtype=np.uint8, meta=np.zeros((0, 0, 0), np.uint8)
    )
    assert read_window(image, 0.5, (820, 820), (150, 150)).shape == (150, 150, 3)
    assert sorted(read) == [(4, 4)]


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((3, 400, 400), np.uint8)
    stripes[:, :, ::2] = 200
    shrunk = read_window(stripes, 4.0, (10, 10), (50, 50))
    assert abs(float(shrunk.mean()) - 100) < 2
    assert float(shrunk.std()) < 5
