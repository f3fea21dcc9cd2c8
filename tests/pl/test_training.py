"""Loss curves as they were recorded."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from spatialdata import SpatialData

from sphistex import pl


def axes_of(source: SpatialData | AnnData) -> list[Axes]:
    figure = pl.training(source, return_fig=True)
    assert figure is not None
    return figure.axes


def test_curves_and_best_epochs_are_those_recorded(sdata):
    (ax,) = axes_of(sdata)
    curves = sdata.tables["superres"].uns["superres"]["training"]
    train, validation = ax.lines
    np.testing.assert_array_equal(train.get_ydata(), curves["train_loss"])
    np.testing.assert_array_equal(validation.get_ydata(), curves["validation_loss"])
    # epochs are counted from 1: models kept the weights of the second and of the third
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[2, 2.4], [3, 2.2]])


def test_table_and_object_give_the_same_picture(sdata):
    (one,), (other,) = axes_of(sdata), axes_of(sdata.tables["superres"])
    np.testing.assert_array_equal(one.lines[0].get_xydata(), other.lines[0].get_xydata())


def test_without_held_out_spots_there_is_one_curve(sdata):
    curves = sdata.tables["superres"].uns["superres"]["training"]
    curves["validation_loss"] = np.full(4, np.nan)
    curves["best_epoch"] = np.array([3])
    (ax,) = axes_of(sdata)
    assert len(ax.lines) == 1
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[4, 1.2]])


def test_errors_name_what_is_missing(sdata):
    with pytest.raises(KeyError, match="key='nowhere'"):
        pl.training(sdata, key="nowhere")
    with pytest.raises(KeyError, match="key='nowhere'.*superres"):
        pl.training(sdata.tables["superres"], key="nowhere")
    del sdata.tables["superres"].uns["superres"]["training"]
    with pytest.raises(KeyError, match="no loss curves"):
        pl.training(sdata)
