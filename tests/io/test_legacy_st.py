"""The legacy ST layout: names of counts and positions of spots are matched, wherever the rows stand."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sphistex._section import resolve_section
from sphistex.io import read_st
from sphistex.io.images import open_image

PICTURE = np.full((1200, 1400, 3), 200, np.uint8)


def write(folder: Path, lost_counts: int = 0, lost_spots: int = 0) -> tuple[Path, Path]:
    """A 5 × 4 array, 250 px apart; the count of gene "x" ("y") is the column (row) of the spot."""
    y, x = (axis.ravel() for axis in np.indices((4, 5)) + 2)
    names = [f"{a}x{b}" for a, b in zip(x, y, strict=True)]
    counts = pd.DataFrame({"x": x, "y": y}, index=names).sample(frac=1, random_state=0)
    spots = pd.DataFrame({"x": x, "y": y, "pixel_x": 250.0 * (x - 2) + 125, "pixel_y": 250.0 * (y - 2) + 125})
    counts.iloc[lost_counts:].to_csv(folder / "counts.tsv.gz", sep="\t")
    spots.assign(selected=1).iloc[lost_spots:].to_csv(folder / "spots.tsv", sep="\t", index=False)
    return folder / "counts.tsv.gz", folder / "spots.tsv"


def test_counts_meet_their_spots(tmp_path: Path) -> None:
    counts, spots = write(tmp_path)
    found = resolve_section(read_st(counts, PICTURE, spots))
    assert found.mpp == pytest.approx(200 / 250)
    np.testing.assert_allclose(2 * found.radius_px * found.mpp, 100)
    np.testing.assert_allclose(found.xy_px, 250 * (found.table.X.toarray() - 2) + 125)
    np.testing.assert_array_equal(found.table.obs[["array_col", "array_row"]], found.table.X.toarray())


def test_spots_in_one_table_only_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts, spots = write(tmp_path, lost_counts=3, lost_spots=2)
    with caplog.at_level(logging.INFO, "sphistex"):
        sdata = read_st(counts, PICTURE, spots)
    kept = sdata.tables["counts"].n_obs
    assert f"{kept} spots in both tables; left out: {17 - kept} with counts only, {18 - kept} with" in caplog.text


def test_tables_that_do_not_belong_together(tmp_path: Path) -> None:
    counts, spots = write(tmp_path)
    pd.read_csv(spots, sep="\t").assign(x=99).to_csv(spots, sep="\t", index=False)
    with pytest.raises(ValueError, match="no spot in common"):
        read_st(counts, PICTURE, spots)
    pd.read_csv(spots, sep="\t").drop(columns="pixel_x").to_csv(spots, sep="\t", index=False)
    with pytest.raises(ValueError, match="lacks the columns .'pixel_x'"):
        read_st(counts, PICTURE, spots)


@pytest.mark.real_data
def test_her2st(data_dir: Path) -> None:
    folder = data_dir / "her2st"
    spots = pd.read_csv(folder / "C3_selection.tsv", sep="\t")
    sdata = read_st(folder / "C3.tsv.gz", open_image(folder / "C3.jpg"), folder / "C3_selection.tsv")
    found = resolve_section(sdata)
    # The array's own (continuous) coordinates are in units of the pitch, so that they give the scale independently.
    pitch_px = [np.polyfit(spots[f"new_{axis}"], spots[f"pixel_{axis}"], 1)[0] for axis in "xy"]
    assert found.mpp == pytest.approx(200 / np.mean(pitch_px), rel=0.01)
    assert found.table.n_obs == 180
    position = spots.set_index(spots["x"].astype(str) + "x" + spots["y"].astype(str)).loc[found.table.obs_names]
    np.testing.assert_allclose(found.xy_px, position[["pixel_x", "pixel_y"]])
