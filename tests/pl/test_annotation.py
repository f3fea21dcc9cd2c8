"""Every superpixel has the colour of its label, in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from spatialdata import SpatialData

from sphistex import pl


@pytest.fixture
def labelled(sdata: SpatialData) -> SpatialData:
    table = sdata.tables["superres"]
    left = table.obs["array_col"] < 20
    table.obs["annotation"] = pd.Categorical(np.where(left, "left", "right"))
    table.obs["some"] = table.obs["annotation"].where(~left)
    return sdata


def test_superpixels_have_their_labels_colour_and_none_where_there_is_no_label(labelled):
    palette = {"left": "#112233", "right": "gold"}
    figure = pl.annotation(labelled, ["annotation", "some"], palette=palette, return_fig=True)
    assert figure is not None and len(figure.axes) == 3
    obs = labelled.tables["superres"].obs
    rasters: list[Any] = [ax.images[1].get_array() for ax in figure.axes[1:]]
    row, column = obs[["array_row", "array_col"]].to_numpy().T
    left = (obs["annotation"] == "left").to_numpy()
    for raster, shown, colour in ((rasters[0], left, "#112233"), (rasters[1], ~left, "gold")):
        drawn = raster[row, column][shown, :3]
        np.testing.assert_allclose(drawn, np.broadcast_to(to_rgb(colour), drawn.shape), atol=1e-6)
    assert (rasters[1][row, column][left, 3] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"columns": "nothing"}, KeyError, "columns='nothing'.*'annotation'"),
        ({"columns": "array_row"}, ValueError, "columns='array_row'.*holds numbers"),
        ({"columns": []}, ValueError, "name at least one column"),
        ({"table_key": "nowhere"}, KeyError, "table_key='nowhere'"),
    ],
)
def test_mistakes_are_named(labelled, arguments, error, message):
    with pytest.raises(error, match=message):
        pl.annotation(labelled, **arguments)
