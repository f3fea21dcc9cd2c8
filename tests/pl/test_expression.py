"""Panels of one scale, with what lies at one place drawn at one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sphistex import pl
from sphistex.pl._canvas import Window
from sphistex.pl._sources import Lattice, read_picture


@pytest.fixture
def genes(sdata: SpatialData) -> list[str]:
    return list(sdata.tables["superres"].var_names[:2])


def draw(sdata: SpatialData, genes: str | list[str], **arguments: Any) -> Figure:
    figure = pl.expression(sdata, genes, return_fig=True, **arguments)
    assert figure is not None
    return figure


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def disks(ax: Axes) -> EllipseCollection:
    return next(artist for artist in ax.collections if isinstance(artist, EllipseCollection))


def centres(ax: Axes) -> np.ndarray:
    return np.asarray(disks(ax).get_offsets())


def raster(ax: Axes) -> np.ma.MaskedArray:
    """What a panel shows of a gene."""
    return np.ma.asarray(ax.images[-1].get_array())


def value_at(ax: Axes, x: float, y: float) -> float:
    """What the last raster of a panel shows at a place in µm."""
    image = ax.images[-1]
    left, right, bottom, top = image.get_extent()
    shown = raster(ax)
    rows, columns = shown.shape
    return shown[int((y - top) / (bottom - top) * rows), int((x - left) / (right - left) * columns)]


def test_one_row_per_gene_and_all_panels_show_the_same_part(sdata, genes):
    figure = draw(sdata, genes)
    drawn = panels(figure)
    assert len(drawn) == 2 * 3
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in drawn}) == 1
    assert all(ax.get_aspect() == 1 for ax in drawn)
    figure.canvas.draw()
    assert len({tuple(np.round(ax.get_window_extent().size)) for ax in drawn}) == 1
    assert [ax.get_ylabel() for ax in drawn[::3]] == genes


def test_truth_is_a_fourth_column(sdata, genes):
    figure = draw(sdata, genes[0], truth="truth", truth_layer="expected")
    *_, resolved, true = panels(figure)
    # here the result is the truth
    np.testing.assert_allclose(raster(resolved), raster(true), rtol=1e-6)


def test_a_result_of_an_image_alone_has_no_panel_of_spots(sdata, genes):
    sdata.tables["superres"].uns["superres"]["spots"] = False
    drawn = panels(draw(sdata, genes, truth="truth", truth_layer="expected"))
    assert [ax.get_title() for ax in drawn[:3]] == ["H&E", "sphistex, 8 µm", "Truth, 8 µm"]
    np.testing.assert_allclose(raster(drawn[1]), raster(drawn[2]), rtol=1e-6)


def test_superpixels_are_drawn_where_the_spots_over_them_are(sdata, genes):
    table = sdata.tables["superres"]
    table.X = np.repeat(np.arange(table.n_obs, dtype=np.float32)[:, None], table.n_vars, axis=1)
    _, spots, resolved = panels(draw(sdata, genes[0]))
    for x, y in centres(spots):
        centre = np.asarray(table.obsm["spatial"])[int(value_at(resolved, x, y))] * 0.5
        np.testing.assert_allclose([x, y], centre, atol=4.001)


def test_a_part_of_a_result_stays_in_its_place(sdata, genes):
    whole = panels(draw(sdata, genes[0]))[2]
    table = sdata.tables["superres"]
    kept = np.asarray(table.obsm["spatial"])[:, 0] > 600
    sdata.tables["superres"] = table[kept].copy()
    part = panels(draw(sdata, genes[0]))[2]
    for x, y in np.asarray(table.obsm["spatial"])[kept][::97] * 0.5:
        assert value_at(part, x, y) == value_at(whole, x, y)


def test_spots_have_their_true_size_and_place(sdata, genes):
    spots = disks(panels(draw(sdata, genes[0]))[1])
    np.testing.assert_allclose(np.asarray(spots.get_widths()), 55.0)
    shapes = sdata.shapes["spots"].geometry
    np.testing.assert_allclose(np.asarray(spots.get_offsets()), np.column_stack([shapes.x, shapes.y]) * 0.5)


def test_the_same_density_has_the_same_colour_in_spots_and_superpixels(sdata, genes):
    sdata.tables["superres"].X[:] = 2.0
    counts = sdata.tables["counts"]
    counts.X = np.full(counts.shape, 2.0 * np.pi * 27.5**2 / 8**2)
    _, spots, resolved = panels(draw(sdata, genes[0]))
    np.testing.assert_allclose(np.asarray(disks(spots).get_array()), 2.0)
    assert disks(spots).norm is resolved.images[-1].norm
    assert disks(spots).cmap == resolved.images[-1].cmap


def test_scale_bar_is_as_long_as_it_says(sdata, genes):
    figure = draw(sdata, genes[0])
    ax = panels(figure)[0]
    bar = next(artist for artist in ax.get_children() if isinstance(artist, AnchoredSizeBar))
    figure.canvas.draw()
    (drawn,) = bar.size_bar.get_children()
    length_px = drawn.get_window_extent().width
    per_um = ax.get_window_extent().width / np.ptp(ax.get_xlim())
    assert bar.txt_label.get_text() == f"{length_px / per_um:.0f} µm"


def test_background_is_white_and_nothing_is_drawn_there(sdata, genes):
    ax = panels(draw(sdata, genes[0]))[2]
    shown = raster(ax)
    assert shown.mask.sum() == shown.size - sdata.tables["superres"].n_obs
    assert ax.get_facecolor()[:3] == (1.0, 1.0, 1.0)


def test_crop_shows_just_that(sdata, genes):
    drawn = panels(draw(sdata, genes[0], crop_um=(100, 200, 300, 350)))
    assert {ax.get_xlim() for ax in drawn} == {(100.0, 300.0)}
    assert {ax.get_ylim() for ax in drawn} == {(350.0, 200.0)}


def test_sparse_counts_are_drawn_as_dense_ones(sdata, genes):
    dense = raster(panels(draw(sdata, genes[0]))[2])
    sdata.tables["superres"].X = sparse.csr_matrix(sdata.tables["superres"].X)
    np.testing.assert_array_equal(raster(panels(draw(sdata, genes[0]))[2]), dense)


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_saved_figures_are_files_and_stay_closed(sdata, genes, tmp_path: Path, suffix: str):
    file = tmp_path / "new" / f"picture.{suffix}"
    assert pl.expression(sdata, genes[0], save=file) is None
    assert file.stat().st_size > 10_000
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"genes": ["nonsense"]}, KeyError, r"genes \['nonsense'\].*'superres'"),
        ({"genes": []}, ValueError, "at least one gene"),
        ({"key": "nowhere"}, KeyError, "key='nowhere'.*'superres'"),
        ({"key": "counts"}, KeyError, "key='counts'.*not a result.*'superres'"),
        ({"truth": "nowhere"}, KeyError, "truth='nowhere'"),
        ({"layer": "nowhere"}, KeyError, "layer='nowhere'"),
        ({"crop_um": (5, 5, 1, 1)}, ValueError, "crop_um"),
        ({"vmax": "high"}, ValueError, "vmax='high'"),
        ({"vmax": "p101"}, ValueError, "vmax='p101'"),
        ({"vmin": 3, "vmax": 2}, ValueError, "vmin=3, vmax=2"),
    ],
)
def test_mistakes_are_named(sdata, genes, arguments, error, message):
    with pytest.raises(error, match=message):
        pl.expression(sdata, arguments.pop("genes", genes), **arguments)


def test_a_misspelt_gene_is_answered_with_those_like_it(sdata, genes):
    with pytest.raises(KeyError, match=genes[0]):
        pl.expression(sdata, genes[0] + "x")


@pytest.mark.parametrize("pyramid", [False, True])
@pytest.mark.parametrize("window", [Window(0, 0, 2000, 1500), Window(310, 205, 720, 512)])
def test_the_image_is_drawn_where_it_is(pyramid: bool, window: Window):
    pixels = np.full((3, 3000, 4000), 255, dtype=np.uint8)
    pixels[:, 600:1000, 800:1400] = 0  # 400 to 700 µm from the left, 300 to 500 from the top
    levels = {"scale_factors": [2, 2]} if pyramid else {}
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), chunks=(3, 512, 512), **levels)
    picture, covered = read_picture(SpatialData(images={"he": image}), "he", window, mpp=0.5)
    assert max(picture.shape) <= 2000
    rows, columns = np.nonzero(picture[..., 0] < 128)
    step = covered.width / picture.shape[1]
    found = covered.left + columns.min() * step, covered.left + (columns.max() + 1) * step
    assert found == pytest.approx((400, 700), abs=step)
    step = covered.height / picture.shape[0]
    found = covered.top + rows.min() * step, covered.top + (rows.max() + 1) * step
    assert found == pytest.approx((300, 500), abs=step)


def test_raster_adds_up_what_lies_in_a_superpixel():
    lattice = Lattice(np.array([100.0, 0.0]), 16.0, (2, 3), 0.5)
    places = np.array([[101, 1], [115, 15], [132, 17], [99, 1], [148.5, 3]])
    drawn = lattice.raster(places, np.array([1.0, 2.0, 5.0, 7.0, 9.0]))
    np.testing.assert_array_equal(drawn, [[3, np.nan, np.nan], [np.nan, np.nan, 5]])


@pytest.mark.parametrize("x_y", [(310, 205), (312, 201), (304, 216), (0, 199)])
def test_a_result_that_was_cut_out_lies_on_its_part_of_the_image(sdata: SpatialData, x_y: tuple[int, int]):
    whole, corner = sdata.tables["superres"], np.array(x_y)  # in pixels, within a superpixel, or on its border
    cut = sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=corner, max_coordinate=corner + 500, target_coordinate_system="global"
    )
    table = cut.tables["superres"]
    found = Lattice.of(cut, table, table.uns["superres"])
    before = Lattice.of(sdata, whole[table.obs_names], whole.uns["superres"])
    assert found.shape == before.shape == tuple(table.obs[["array_row", "array_col"]].nunique())
    np.testing.assert_allclose(
        [found.window.left, found.window.top], np.subtract(before.window.extent[::3], corner / 2)
    )
    values = np.asarray(table.X)[:, 0]
    raster = found.raster(table.obsm["spatial"], values)
    np.testing.assert_array_equal(raster[found.row_column(table.obsm["spatial"])], values)


def test_a_crop_beside_the_image_is_refused(sdata: SpatialData, genes: list[str]):
    with pytest.raises(ValueError, match="nothing of image 'image' lies between x 5000 and 6000 µm.*it is"):
        pl.expression(sdata, genes, crop_um=(5000, 5000, 6000, 6000))
