"""Dots as large as they are certain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData

from sphistex import pl


@pytest.fixture
def sdata() -> SpatialData:
    """Two groups and three sets, as enrich leaves them."""
    found = pd.DataFrame(
        {
            "group": pd.Categorical(["1", "1", "1", "2", "2", "2"]),
            "gene_set": ["HYPOXIA", "EMT", "CYCLE"] * 2,
            "log_odds_ratio": [3.0, 0.5, -1.0, 0.0, 0.2, 2.0],
            "p": [1e-7, 0.3, 1.0, 1.0, 0.5, 1e-3],
            "q": [1e-6, 0.5, 1.0, 1.0, 0.6, 1e-2],
        }
    )
    table = AnnData(np.zeros((4, 2), np.float32))
    table.uns["enrichment"] = {"made_by": "enrich", "over_representation": found}
    return SpatialData(tables={"spots": table})


def test_the_smallest_q_has_the_largest_dot_in_its_place(sdata):
    figure = pl.enrichment(sdata, table_key="spots", return_fig=True)
    assert figure is not None
    ax = figure.axes[0]
    dots: Any = ax.collections[0]
    groups, sets = ([label.get_text() for label in labels] for labels in (ax.get_xticklabels(), ax.get_yticklabels()))
    column, row = np.asarray(dots.get_offsets())[np.argmax(dots.get_sizes())]
    assert (groups[int(column)], sets[int(row)]) == ("1", "HYPOXIA")
    # only dots that are certain have an edge
    edged = np.asarray(dots.get_edgecolors())[:, 3] > 0
    certain = [(sets[int(y)], groups[int(x)]) for x, y in np.asarray(dots.get_offsets())[edged]]
    assert certain == [("HYPOXIA", "1"), ("CYCLE", "2")]


def test_only_the_best_sets_are_drawn(sdata):
    figure = pl.enrichment(sdata, table_key="spots", n_sets=2, return_fig=True)
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["HYPOXIA", "CYCLE"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table_key": "nowhere"}, KeyError, "table_key='nowhere'"),
        ({"key": "other"}, KeyError, "key='other'.*groupby="),
        ({"n_sets": 0}, ValueError, "n_sets=0"),
    ],
)
def test_mistakes_are_named(sdata, arguments, error, message):
    with pytest.raises(error, match=message):
        pl.enrichment(sdata, **({"table_key": "spots"} | arguments))
