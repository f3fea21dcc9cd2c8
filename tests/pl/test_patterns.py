"""A dot for every gene, one for its null, and the names of those beyond it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation, Text

from sphistex import pl

TABLE = pd.DataFrame(
    {
        "gene": ["A", "B", "C"] * 2,
        "statistic": ["moran"] * 3 + ["geary"] * 3,
        "before": [0.1, 0.2, 0.3, 0.9, 0.8, 0.7],
        "after": [0.6, 0.5, 0.7, 0.2, 0.5, 0.4],
        "null": [0.1, 0.6, 0.6, 0.3, 0.1, 0.8],
    }
)


def test_genes_and_nulls_are_where_they_belong_and_those_beyond_are_named():
    figure = pl.patterns(TABLE, return_fig=True)
    assert figure is not None
    for ax, statistic in zip(figure.axes, ("moran", "geary"), strict=True):
        expected = TABLE[TABLE["statistic"] == statistic]
        dots: list[Any] = [one for one in ax.collections if one.get_label() in ("without the image", "super-resolved")]
        for one, column in zip(dots, ("null", "after"), strict=True):
            np.testing.assert_allclose(one.get_offsets(), expected[["before", column]])
        # Geary's C is the lower, the more patterned
        named = ["A", "C"]
        assert sorted(text.get_text() for text in ax.texts) == named


def test_what_is_finer_than_the_spots_is_drawn_against_its_null():
    fine = TABLE[:3].assign(statistic="fine", before=np.nan, beyond=[True, False, True])
    figure = pl.patterns(pd.concat([TABLE, fine]), return_fig=True)
    assert figure is not None
    ax = figure.axes[2]
    dots: list[Any] = list(ax.collections)
    found = np.concatenate([one.get_offsets() for one in dots])
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(fine[["null", "after"]], axis=0))
    assert [text.get_text() for text in ax.texts] == ["A", "C"]


def test_names_do_not_overlap():
    crowded = pd.DataFrame({"gene": list("ABCDEFGH"), "statistic": "moran", "before": 0.1, "after": 0.6, "null": 0.2})
    figure = pl.patterns(crowded, return_fig=True)
    assert figure is not None
    figure.canvas.draw()
    ax = figure.axes[0]
    heights = np.sort([text.xyann[1] for text in ax.texts if isinstance(text, Annotation)]) * ax.bbox.height
    assert len(heights) == 8
    assert np.diff(heights).min() > max(Text.get_window_extent(text).height for text in ax.texts)


def test_without_a_null_there_is_one_dot_a_gene():
    figure = pl.patterns(TABLE.assign(null=np.nan), n_named=1, return_fig=True)
    assert figure is not None
    assert [len(ax.texts) for ax in figure.axes] == [1, 1]
    assert "without the image" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_mistakes_are_named():
    with pytest.raises(KeyError, match=r"lacks the columns \['after'\]"):
        pl.patterns(TABLE.drop(columns="after"))
    with pytest.raises(ValueError, match="nothing to draw"):
        pl.patterns(TABLE[:0])
