"""Borders lie between superpixels, bands around means, and outlines where aggregates are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sphistex import pl, tl


@pytest.fixture
def with_border(sdata: SpatialData) -> SpatialData:
    """The left part of the tissue is the region."""
    table = sdata.tables["superres"]
    table.obs["left"] = table.obsm["spatial"][:, 0] < 800
    tl.interface(sdata, "left")
    return sdata


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def lines(ax: Axes) -> Any:
    return next(artist for artist in ax.collections if isinstance(artist, LineCollection))


def test_the_border_runs_between_the_superpixels_of_both_sides(with_border):
    figure = drawn(pl.interface(with_border, return_fig=True))
    rows = with_border.tables["superres"].obs.loc[lambda obs: obs["distance_um"] == 4.0, "array_row"].nunique()
    for ax in figure.axes[:2]:
        sides = np.array(lines(ax).get_segments())
        assert len(sides) == rows
        np.testing.assert_allclose(sides[..., 0], 400.0)  # µm
        assert sides[..., 1].min() >= 0 and sides[..., 1].max() <= 600


def test_the_map_is_the_distance_and_its_middle_the_border(with_border):
    figure = drawn(pl.interface(with_border, max_um=100, return_fig=True))
    picture: Any = figure.axes[1].images[0]
    values = np.asarray(picture.get_array())
    distance = with_border.tables["superres"].obs["distance_um"]
    np.testing.assert_allclose(np.sort(values[np.isfinite(values)]), np.sort(distance))
    assert picture.norm(0.0) == 0.5 and picture.norm(100.0) == 1.0


def test_a_panel_for_each_gene_with_its_band(with_border):
    genes = list(with_border.tables["superres"].var_names[:5])
    figure = drawn(pl.profiles(with_border, genes, block_um=100, return_fig=True))
    assert [ax.get_title() for ax in figure.axes] == genes
    found = tl.profiles(with_border, genes[1], block_um=100)
    line = figure.axes[1].lines[1]
    np.testing.assert_allclose(np.asarray(line.get_xydata()), found[["distance_um", "mean"]])
    band = np.concatenate([path.vertices for path in figure.axes[1].collections[0].get_paths()])
    assert [band[:, 1].min(), band[:, 1].max()] == pytest.approx([found["low"].min(), found["high"].max()])


def test_aggregates_are_outlined_over_the_image(sdata):
    table = sdata.tables["superres"]
    tl.aggregates(sdata, list(table.var_names[:3]), threshold=0.5, smooth_um=8, min_area_um2=1000)
    figure = drawn(pl.aggregates(sdata, return_fig=True))
    outlines = sdata.shapes["aggregates"].geometry
    for ax in figure.axes[:2]:
        corners = np.concatenate(lines(ax).get_segments())
        np.testing.assert_allclose([*corners.min(0), *corners.max(0)], outlines.total_bounds * 0.5)
    assert {text.get_text() for text in figure.axes[0].texts} >= set(map(str, outlines.index[:5]))
    assert f"{len(outlines)} aggregates" in figure.axes[1].get_title()


def test_no_aggregates_are_drawn_where_there_are_none(sdata):
    with pytest.warns(UserWarning, match="no aggregate"):
        tl.aggregates(sdata, list(sdata.tables["superres"].var_names[:3]), threshold=100.0, key_added="none")
    assert "0 aggregates" in drawn(pl.aggregates(sdata, "none", return_fig=True)).axes[1].get_title()


def test_mistakes_are_named(sdata, with_border):
    with pytest.raises(KeyError, match="distance_key='far'.*sphistex.tl.interface"):
        pl.interface(sdata, distance_key="far")
    with pytest.raises(KeyError, match="image_key='nowhere'"):
        pl.interface(sdata, image_key="nowhere")
    with pytest.raises(ValueError, match="max_um=-3"):
        pl.interface(sdata, max_um=-3)
    with pytest.raises(KeyError, match=r"key='spots' is not what sphistex.tl.aggregates added.*\['spots'\]"):
        pl.aggregates(sdata, "spots")
