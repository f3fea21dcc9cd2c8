"""Genes as lights: each in its colour where it is, and their sum where they are together."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from spatialdata import SpatialData

from sphistex import pl


@pytest.fixture
def halves(sdata: SpatialData) -> SpatialData:
    """The first gene on the left and the second one below, one count each; in the spots nothing."""
    table = sdata.tables["superres"]
    x, y = (np.asarray(table.obsm["spatial"]) * 0.5).T
    table.X[:] = 0
    table.X[:, 0], table.X[:, 1] = x < 400, y > 300
    sdata.tables["counts"].X = np.zeros(sdata.tables["counts"].shape)
    return sdata


def colour_at(ax: Axes, x: float, y: float) -> list[float]:
    """Red, green, blue and opacity of the last raster of a panel at a place in µm."""
    raster = np.asarray(ax.images[-1].get_array())
    left, right, bottom, top = ax.images[-1].get_extent()
    row, column = int((y - top) / (bottom - top) * len(raster)), int((x - left) / (right - left) * raster.shape[1])
    return raster[row, column].tolist()


def test_colours_are_those_of_the_genes_and_add_up(halves: SpatialData):
    genes = list(halves.tables["superres"].var_names[:2])
    figure = pl.rgb(halves, genes, vmax=1, return_fig=True)
    assert figure is not None
    image, spots, resolved = figure.axes
    assert colour_at(resolved, 200, 100) == [1, 0, 0, 1]
    assert colour_at(resolved, 600, 500) == [0, 1, 0, 1]
    assert colour_at(resolved, 200, 500) == [1, 1, 0, 1]
    assert colour_at(resolved, 600, 100) == [0, 0, 0, 1]
    raster = np.asarray(resolved.images[-1].get_array())
    assert (raster[..., 3] > 0).sum() == halves.tables["superres"].n_obs, "beside the tissue nothing is drawn"
    assert image.get_xlim() == resolved.get_xlim() and image.get_ylim() == spots.get_ylim()


def test_the_same_density_has_the_same_colour_in_spots_and_superpixels(halves: SpatialData):
    halves.tables["superres"].X[:] = 2.0
    counts = halves.tables["counts"]
    counts.X = np.full(counts.shape, 2.0 * np.pi * 27.5**2 / 8**2)
    figure = pl.rgb(halves, list(counts.var_names[:2]), vmax=4, colours=["magenta", "#00ff00"], return_fig=True)
    assert figure is not None
    disks = next(artist for artist in figure.axes[1].collections if isinstance(artist, EllipseCollection))
    np.testing.assert_allclose(np.unique(disks.get_facecolor(), axis=0), [[0.5, 0.5, 0.5, 1]], atol=1e-6)
    assert colour_at(figure.axes[2], 400, 300) == pytest.approx([0.5, 0.5, 0.5, 1])


def test_single_maps_are_drawn_into_axes_of_the_users_figure(halves: SpatialData):
    genes = list(halves.tables["superres"].var_names[:2])
    own, (left, right) = plt.subplots(1, 2)
    try:
        assert pl.expression(halves, genes[0], ax=left) is None
        assert pl.rgb(halves, genes, ax=right, return_fig=True) is own
        assert plt.fignum_exists(own.number), "it is the user's, and stays open"
        assert len(left.images) == len(right.images) == 1
        assert left.get_xlim() == right.get_xlim()
        with pytest.raises(ValueError, match="genes=.*ax= takes one of them"):
            pl.expression(halves, genes, ax=left)
    finally:
        plt.close(own)


def test_text_in_vector_files_stays_text(halves: SpatialData, tmp_path: Path):
    genes = list(halves.tables["superres"].var_names[:2])
    pl.rgb(halves, genes, save=tmp_path / "rgb.svg")
    written = (tmp_path / "rgb.svg").read_text()
    assert all(f">{gene}</text>" in written for gene in genes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"colours": ["red"]}, "2 genes, but 1 colours"),
        ({"colours": ["red", "reddish"]}, "colours=.*reddish"),
        ({"crop_um": (5, 5, 1, 1)}, "crop_um"),
    ],
)
def test_mistakes_are_named(halves: SpatialData, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        pl.rgb(halves, list(halves.tables["superres"].var_names[:2]), **arguments)
