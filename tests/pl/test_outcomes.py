"""Pictures of outcomes show the numbers that they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sphistex import pl


@pytest.fixture
def patients() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "time": [2.0, 4.0, 6.0, 8.0, 3.0, 9.0, 10.0, 12.0],
            "event": [1, 1, 0, 1, 1, 0, 0, 0],
            "network_group": ["high"] * 4 + ["low"] * 4,
            "response": [1, 1, 0, 1, 0, 0, 1, 0],
            "network": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
        },
        index=[f"P{number}" for number in range(8)],
    )


def test_kaplan_meier_curves_fall_at_events_and_count_those_at_risk(patients: pd.DataFrame):
    figure = pl.kaplan_meier(patients, time_label="months", return_fig=True)
    assert figure is not None
    curves, below = figure.axes
    high = next(line for line in curves.lines if line.get_label() == "high")
    assert np.asarray(high.get_ydata())[np.searchsorted(high.get_xdata(), [0, 2, 4, 8])] == pytest.approx(
        [1, 0.75, 0.5, 0]
    )
    assert any(text.startswith("log-rank p = ") for text in (curves.get_title("right"),))
    rows = {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in below.texts}
    for (tick, row), shown in rows.items():
        group = patients[patients["network_group"] == ("high", "low")[row]]
        assert int(shown) == (group["time"] >= tick).sum()
    assert len(rows) > 6
    assert below.get_xlabel() == "months"


def test_more_groups_have_no_p_value(patients: pd.DataFrame):
    patients["arm"] = list("aabbccdd")
    figure = pl.kaplan_meier(patients, by="arm", return_fig=True)
    assert figure is not None
    assert figure.axes[0].get_title("right") == ""
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == list("abcd")


def test_roc_area_is_the_share_of_pairs_in_order(patients: pd.DataFrame, tmp_path: Path):
    figure = pl.roc(patients, by="network", return_fig=True, save=tmp_path / "roc.png")
    assert figure is not None
    responders = patients["response"] == 1
    area = np.mean([a > b for a in patients["network"][responders] for b in patients["network"][~responders]])
    assert figure.axes[0].lines[-1].get_label() == f"network, AUC {area:.2f}"
    assert np.asarray(Image.open(tmp_path / "roc.png")).std() > 5


def test_missing_columns_and_single_responses_are_named(patients: pd.DataFrame):
    with pytest.raises(KeyError, match="pooled_group"):
        pl.kaplan_meier(patients, by="pooled_group")
    with pytest.raises(ValueError, match="0 and 1 are needed"):
        pl.roc(patients.assign(response=1), by="network")
