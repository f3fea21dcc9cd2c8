"""The picture shows what the table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from spatialdata import SpatialData

import sphistex as sx


@pytest.fixture
def certain(sdata: SpatialData) -> SpatialData:
    """The known result with a calibration of its own."""
    table = sdata.tables["superres"]
    table.var["mean_count"], table.var["error_variance"] = np.asarray(table.X).mean(0), 0.2
    levels = np.linspace(0, 1, 201)
    table.uns["superres"]["calibration"] = {"side_um": 49.0, "pitch_um": 8.0, "coverage": levels, "n_spots": 100}
    return sdata


def test_the_panels_are_the_layers(certain: SpatialData, tmp_path: Path) -> None:
    gene = certain.tables["superres"].var_names[0]
    figure = sx.pl.confidence(certain, gene, scale_um=32, save=tmp_path / "a.png", return_fig=True)
    assert (tmp_path / "a.png").stat().st_size > 0
    table = sx.tl.confidence(certain, gene, scale_um=32)
    assert figure is not None
    drawn = [np.asarray(ax.images[0].get_array()) for ax in figure.axes[:4]]
    for raster, values in zip(
        drawn, (table.X, *(table.layers[n] for n in ("lower", "upper", "probability"))), strict=True
    ):
        np.testing.assert_allclose(np.nansum(np.ma.filled(raster, np.nan)), values.sum(), rtol=1e-5)
    assert figure.axes[3].collections, "what is called is outlined"


def test_a_result_that_was_stored_under_another_name_is_drawn(certain: SpatialData) -> None:
    certain.tables["mine"] = certain.tables["superres"].copy()
    gene = certain.tables["mine"].var_names[0]
    assert sx.pl.confidence(certain, gene, key="mine", return_fig=True) is not None


def test_what_cannot_be_drawn_is_refused(certain: SpatialData) -> None:
    with pytest.raises(KeyError, match="none"):
        sx.pl.confidence(certain, "none")
    with pytest.raises(ValueError, match="scale_um=30"):
        sx.pl.confidence(certain, certain.tables["superres"].var_names[0], scale_um=30)
