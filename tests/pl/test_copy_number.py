"""Profiles group by group, and chromosomes where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData

from sphistex import pl

N, N_WINDOWS = 60, 30


@pytest.fixture
def sdata() -> SpatialData:
    """Spots in mixed order; those of subtype 2 have a gain on the second chromosome."""
    rng = np.random.default_rng(0)
    subtype = rng.permutation(np.repeat(["1", "2", None], N // 3))
    obs = pd.DataFrame({"subtype": pd.Categorical(subtype)}, index=[f"spot{i}" for i in range(N)])
    table = AnnData(np.zeros((N, 2), np.float32), obs=obs)
    table.obs["depth"] = 1.0
    table.obsm["X_cnv"] = np.zeros((N, N_WINDOWS), np.float32)
    table.obsm["X_cnv"][np.ix_(subtype == "2", np.arange(10, 20))] = 1.0
    table.uns["cnv"] = {"chr_pos": {"chr1": 0, "chr2": 10, "chr10": 20}}
    return SpatialData(tables={"spots": table})


def test_spots_stand_group_by_group_with_the_others_last(sdata):
    figure = pl.copy_number(sdata, table_key="spots", return_fig=True)
    assert figure is not None
    side, ax = figure.axes[:2]
    shown = np.asarray(ax.images[0].get_array())
    gained = shown[:, 10:20].all(1)
    assert np.flatnonzero(gained).tolist() == list(range(20, 40))
    assert not shown[:, :10].any() and not shown[:, 20:].any()
    assert [label.get_text() for label in side.get_yticklabels()] == ["1", "2", "others"]


def test_chromosomes_are_named_in_their_middle(sdata):
    figure = pl.copy_number(sdata, table_key="spots", return_fig=True)
    assert figure is not None
    ax = figure.axes[1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "10"]
    np.testing.assert_allclose(ax.get_xticks(), [4.5, 14.5, 24.5])


def test_a_loss_is_as_blue_as_a_gain_is_red(sdata):
    sdata.tables["spots"].obsm["X_cnv"][:, 25:] = -3
    figure = pl.copy_number(sdata, table_key="spots", return_fig=True)
    assert figure is not None
    norm: Any = figure.axes[1].images[0].norm
    assert norm(0.0) == 0.5 and norm.vmax == -norm.vmin == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table_key": "nowhere"}, KeyError, "table_key='nowhere'"),
        ({"groupby": "nothing"}, KeyError, "groupby='nothing'.*'subtype'"),
        ({"groupby": "depth"}, ValueError, "groupby='depth'.*numbers"),
        ({"key": "other"}, KeyError, "key='other'.*gene positions"),
        ({"vmax": 0}, ValueError, "vmax=0"),
    ],
)
def test_mistakes_are_named(sdata, arguments, error, message):
    with pytest.raises(error, match=message):
        pl.copy_number(sdata, **({"table_key": "spots"} | arguments))
