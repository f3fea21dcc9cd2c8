"""Predicted and measured maps at one scale and one place, with the correlation that they really have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sphistex import datasets, pl
from sphistex.pl._places import Places


@pytest.fixture(scope="module")
def simulated() -> SpatialData:
    """Not the one of all tests of pictures, whose counts some of them change."""
    return datasets.simulate(size_um=(600, 800), n_genes=6, seed=1)


@pytest.fixture
def sdata(simulated: SpatialData) -> SpatialData:
    """Measured spots, and a prediction at the same places that annotates nothing: the measured values with noise."""
    section = SpatialData.init_from_elements({name: element for _, name, element in simulated.gen_elements()})
    for name in ("counts", "truth"):
        section.tables[name] = section.tables[name].copy()
    measured = section.tables["counts"]
    predicted = measured.copy()
    sc.pp.normalize_total(predicted, target_sum=1e4)
    sc.pp.log1p(predicted)
    noise = np.random.default_rng(0).normal(0, 1, predicted.shape)
    predicted.X = np.maximum(predicted.X.toarray() + noise, 0).astype(np.float32)
    del predicted.uns["spatialdata_attrs"]
    predicted.uns["histology"] = {"lattice": {"kind": "hexagonal", "pitch_um": 100.0}}
    predicted.uns["spatial"] = {"histology": {"scalefactors": {"spot_diameter_fullres": 110.0}}}
    left = predicted.obsm["spatial"][:, 0] < 800
    predicted.obs["predicted_region"] = pd.Categorical(np.where(left, "tumour", "stroma"))
    measured.obs["region_of_pathologist"] = np.where(left, "tumour", "fat")
    section.tables["histology"] = predicted
    return section


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def disks(ax: Axes) -> Any:
    return next(artist for artist in ax.collections if isinstance(artist, EllipseCollection))


def draw(sdata: SpatialData, genes: str | list[str], **arguments: Any) -> Figure:
    figure = pl.histology(sdata, genes, return_fig=True, **arguments)
    assert figure is not None
    return figure


def test_one_row_per_gene_and_all_panels_show_the_same_part(sdata):
    genes = list(sdata.tables["histology"].var_names[:2])
    drawn = panels(draw(sdata, genes, measured_key="counts"))
    assert len(drawn) == 2 * 3
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in drawn}) == 1
    assert [ax.get_ylabel() for ax in drawn[::3]] == genes
    assert len(panels(draw(sdata, genes))) == 2 * 2


def test_a_table_with_and_one_without_shapes_lie_on_each_other(sdata):
    _, predicted, measured = panels(draw(sdata, sdata.tables["counts"].var_names[0], measured_key="counts"))
    np.testing.assert_allclose(disks(predicted).get_offsets(), disks(measured).get_offsets(), atol=0.1)
    for ax in (predicted, measured):
        np.testing.assert_allclose(disks(ax).get_widths(), 55.0, rtol=1e-3)


def test_maps_share_a_scale_and_the_title_says_their_correlation(sdata):
    gene = sdata.tables["counts"].var_names[0]
    _, predicted, measured = panels(draw(sdata, gene, measured_key="counts"))
    assert disks(predicted).norm is disks(measured).norm
    r = np.corrcoef(disks(predicted).get_array(), disks(measured).get_array())[0, 1]
    assert measured.get_title() == f"Measured, r = {r:.2f}"
    # raw counts are drawn as logarithms of 10,000 per spot
    assert 4 < disks(measured).get_array().max() < np.log1p(1e4)


def test_spots_are_matched_by_place_not_by_row(sdata):
    gene = sdata.tables["counts"].var_names[0]
    whole = panels(draw(sdata, gene, measured_key="counts"))[2].get_title()
    predicted = sdata.tables["histology"]
    shuffled = np.random.default_rng(1).permutation(predicted.n_obs)
    sdata.tables["histology"] = predicted[shuffled].copy()
    assert panels(draw(sdata, gene, measured_key="counts"))[2].get_title() == whole


def test_spots_farther_away_than_half_the_pitch_are_not_matched(sdata):
    predicted = sdata.tables["histology"]
    here = Places.of(sdata, predicted, "histology")
    predicted.obsm["spatial"] = predicted.obsm["spatial"] + [90.0, 0.0]  # 45 µm
    assert len(here.nearest(Places.of(sdata, predicted, "histology"))[0]) == predicted.n_obs
    predicted.obsm["spatial"] = predicted.obsm["spatial"] + [0.0, 5000.0]
    sdata.tables["histology"] = predicted
    assert "no spots in common" in panels(draw(sdata, predicted.var_names[0], measured_key="counts"))[2].get_title()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"genes": "nonsense"}, KeyError, r"\['nonsense'\].*'histology'"),
        ({"table_key": "nowhere"}, KeyError, "table_key='nowhere'"),
        ({"measured_key": "nowhere"}, KeyError, "measured_key='nowhere'"),
        ({"image_key": "nowhere"}, KeyError, "image_key='nowhere'"),
        ({"vmin": 3, "vmax": 2}, ValueError, "vmin=3, vmax=2"),
    ],
)
def test_mistakes_are_named(sdata, arguments, error, message):
    with pytest.raises(error, match=message):
        pl.histology(sdata, arguments.pop("genes", sdata.tables["counts"].var_names[0]), **arguments)


def test_a_table_without_places_is_refused(sdata):
    del sdata.tables["histology"].uns["histology"]
    with pytest.raises(ValueError, match="table 'histology' does not say where its spots lie"):
        pl.histology(sdata, sdata.tables["counts"].var_names[0])


def test_regions_of_the_same_name_have_the_same_colour(sdata):
    figure = pl.regions(sdata, measured_column="region_of_pathologist", measured_key="counts", return_fig=True)
    assert figure is not None
    _, predicted, measured = figure.axes
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {"tumour", "stroma", "fat"}
    left = np.asarray(disks(predicted).get_offsets())[:, 0] < 400
    colours = [np.unique(np.asarray(disks(ax).get_facecolors())[left], axis=0) for ax in (predicted, measured)]
    assert len(colours[0]) == 1
    np.testing.assert_array_equal(colours[0], colours[1])


def test_spots_without_a_region_are_not_drawn(sdata):
    table = sdata.tables["histology"]
    table.obs["subtype"] = pd.Categorical(["1"] * 5 + [None] * (table.n_obs - 5))
    table.uns["subtype_colors"] = ["#123456"]
    figure = pl.regions(sdata, "subtype", return_fig=True)
    assert figure is not None
    drawn = disks(figure.axes[1])
    assert len(drawn.get_offsets()) == 5
    np.testing.assert_allclose(drawn.get_facecolors()[0][:3] * 255, [0x12, 0x34, 0x56])
    figure = pl.regions(sdata, "subtype", palette={"1": "red"}, return_fig=True)
    assert figure is not None
    np.testing.assert_allclose(disks(figure.axes[1]).get_facecolors()[0][:3], [1, 0, 0])


def test_superpixels_are_drawn_too(sdata):
    table = sdata.tables["truth"]
    table.uns["truth"] = {"mpp": 0.5, "pitch_um": 8.0, "section": {"image_key": "image"}}
    figure = pl.regions(sdata, "compartment", table_key="truth", return_fig=True)
    assert figure is not None
    drawn = disks(figure.axes[1])
    np.testing.assert_allclose(drawn.get_offsets(), table.obsm["spatial"] * 0.5)
    np.testing.assert_allclose(drawn.get_widths(), 8.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"column": "nothing"}, KeyError, "column='nothing'.*'predicted_region'"),
        ({"column": "array_row"}, ValueError, "holds numbers"),
        ({"measured_column": "nothing", "measured_key": "counts"}, KeyError, "measured_column='nothing'"),
        ({"palette": {"tumour": "no colour"}}, ValueError, "'no colour'"),
    ],
)
def test_mistakes_about_regions_are_named(sdata, arguments, error, message):
    with pytest.raises(error, match=message):
        pl.regions(sdata, **arguments)
