"""Colours that follow what the encoder tells apart."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from matplotlib.axes import Axes
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sphistex import pl
from sphistex.pl.features import principal_colours


def axes_of(sdata: SpatialData) -> list[Axes]:
    figure = pl.features(sdata, key="map", return_fig=True)
    assert figure is not None
    return figure.axes


@pytest.fixture
def mapped() -> SpatialData:
    """Tissue of two kinds, left and right, on an empty slide; 300 × 200 superpixels."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(16, 200, 300)) * 0.2
    vectors[:, :, 150:] += rng.normal(size=(16, 1, 1)) * 3
    vectors[:, :20] = vectors[:, 180:] = vectors[:, :, :30] = 0
    vectors = da.from_array(vectors.astype(np.float16), chunks=(16, 64, 64))
    images = {
        "he": Image2DModel.parse(da.full((3, 800, 1200), 200, dtype=np.uint8, chunks=512), dims=("c", "y", "x")),
        "map": Image2DModel.parse(vectors, dims=("c", "y", "x")),
    }
    made = {"encoder": "noise", "mpp": 2.0, "pitch_um": 8.0, "image_key": "he"}
    return SpatialData(images=images, attrs={"sphistex": {"map": made}})


def test_tissue_is_coloured_by_kind_and_the_rest_white(mapped):
    _, ax = axes_of(mapped)
    drawn = np.asarray(ax.images[0].get_array())
    assert (drawn[:20] == 1).all() and (drawn[:, :30] == 1).all()
    left, right = drawn[30:170, 40:150].reshape(-1, 3), drawn[30:170, 160:].reshape(-1, 3)
    assert np.linalg.norm(left.mean(0) - right.mean(0)) > 3 * max(left.std(0)[0], right.std(0)[0])


def test_panels_have_one_scale_and_show_the_tissue(mapped):
    first, second = axes_of(mapped)
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    assert first.get_xlim()[0] == pytest.approx(30 * 8, abs=0.03 * 2400)
    assert second.images[0].get_extent() == [0, 2400, 1600, 0]


def test_colours_are_the_principal_components():
    rng = np.random.default_rng(0)
    field = (
        rng.normal(size=(150, 140, 12)) * np.array([9, 6, 4, *[0.1] * 9]) @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
    )
    colours = principal_colours(da.from_array(np.moveaxis(field, -1, 0), chunks=(12, 64, 64)))
    flat = field.reshape(-1, 12) - field.reshape(-1, 12).mean(0)
    scores = flat @ np.linalg.svd(flat, full_matrices=False)[2][:3].T
    for channel, score in zip(colours.reshape(-1, 3).T, scores.T, strict=True):
        inside = (channel > 0) & (channel < 1)
        assert inside.mean() > 0.95
        assert abs(np.corrcoef(channel[inside], score[inside])[0, 1]) > 0.999


def test_errors_name_what_there_is(mapped):
    with pytest.raises(KeyError, match="key='superpixel_features'.*map"):
        pl.features(mapped)
    with pytest.raises(KeyError, match="key='he'.*not a feature map"):
        pl.features(mapped, key="he")
    mapped.images["map"] = Image2DModel.parse(np.zeros((4, 30, 30), np.float16), dims=("c", "y", "x"))
    with pytest.raises(ValueError, match="only zeros"):
        pl.features(mapped, key="map")
