"""Microns per pixel from the spot lattice, whatever is missing from it, and a stated value checked against it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel

from sphistex._scale import lattice_of
from sphistex.io import from_spots
from sphistex.pp.mpp import microns_per_pixel


def lattice(kind: str, pitch_px: float, n: int = 20) -> NDArray[np.float64]:
    rows, columns = np.indices((n, n)).reshape(2, -1).astype(float)
    if kind == "hexagonal":
        columns, rows = columns + 0.5 * (rows % 2), rows * np.sqrt(3) / 2
    return pitch_px * (np.column_stack([columns, rows]) + 0.5)


def on_glass(xy_px: NDArray[np.float64]) -> SpatialData:
    picture = np.zeros((3, 64, 64), np.uint8)
    return SpatialData(
        images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"))},
        shapes={"spots": ShapesModel.parse(xy_px, geometry=0, radius=10)},
    )


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
@pytest.mark.parametrize(("kept", "shift"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.06), (0.25, 0.03)])
def test_pitch_of_both_lattices(kind: str, kept: float, shift: float) -> None:
    """Spots may be missing at random and sit a little off, as in legacy ST; any rotation of the lattice will do."""
    rng = np.random.default_rng(0)
    xy = lattice(kind, 137.0)
    xy = xy[rng.random(len(xy)) < kept]
    xy = xy + rng.normal(0, shift * 137, xy.shape)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    found = lattice_of(xy @ turn.T)
    assert found.kind == kind
    assert found.pitch_px == pytest.approx(137.0, rel=0.02)


def test_no_lattice() -> None:
    assert lattice_of(np.random.default_rng(0).random((500, 2))).kind == "irregular"
    with pytest.raises(ValueError, match="1 spots is undefined"):
        lattice_of([[3.0, 4.0]])
    with pytest.raises(ValueError, match="on top of each other"):
        lattice_of(np.ones((5, 2)))


def test_without_a_lattice_the_scale_must_be_given() -> None:
    sdata = on_glass(500 * np.random.default_rng(0).random((500, 2)))
    for pitch_um in (None, 100):
        with pytest.raises(ValueError, match="no regular lattice.*pass mpp="):
            microns_per_pixel(sdata, spot_pitch_um=pitch_um)
    assert microns_per_pixel(sdata, mpp=0.3) == 0.3


def test_visium_is_100_um_and_it_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sphistex"):
        assert microns_per_pixel(on_glass(lattice("hexagonal", 250.0))) == pytest.approx(0.4)
    assert "'he': 0.4 µm per pixel (from the spot pitch)" in caplog.text


def test_a_square_lattice_needs_its_pitch() -> None:
    sdata = on_glass(lattice("square", 250.0))
    with pytest.raises(ValueError, match="square lattice.*spot_pitch_um="):
        microns_per_pixel(sdata)
    assert microns_per_pixel(sdata, spot_pitch_um=200) == pytest.approx(0.8)
    assert microns_per_pixel(sdata, mpp=0.7) == 0.7


def test_the_recorded_pitch_is_used() -> None:
    xy = lattice("square", 400.0, n=3)
    counts = AnnData(np.ones((len(xy), 2), dtype=np.float32))
    picture = np.zeros((1200, 1200, 3), np.uint8)
    sdata = from_spots(picture, counts, xy, spot_diameter_um=100, spot_pitch_um=200)
    assert microns_per_pixel(sdata) == pytest.approx(0.5)
    assert microns_per_pixel(sdata, spot_pitch_um=300) == pytest.approx(0.75)


def test_a_stated_scale_may_differ_by_a_fifth() -> None:
    sdata = on_glass(lattice("hexagonal", 200.0))
    assert microns_per_pixel(sdata, mpp=0.55) == 0.55
    with pytest.raises(ValueError, match="mpp=0.25 contradicts.*200 px apart.*0.5 µm per pixel"):
        microns_per_pixel(sdata, mpp=0.25)
    for nonsense in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="mpp="):
            microns_per_pixel(sdata, mpp=nonsense)


def test_coarse_images_warn() -> None:
    with pytest.warns(UserWarning, match="'he' has 2 µm per pixel"):
        assert microns_per_pixel(on_glass(lattice("hexagonal", 50.0))) == pytest.approx(2.0)
