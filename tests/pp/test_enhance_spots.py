"""Enhanced spots as SpatialData elements (the lattices themselves have their own tests)."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from spatialdata import SpatialData, get_centroids, read_zarr
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale

from sphistex._section import resolve_section
from sphistex.pp import enhance_spots

PITCH_PX = 200.0
SIZE_PX = 1400


def lattice(kind: str, n: int = 3, start: float = 300.0) -> np.ndarray:
    row, column = np.indices((n, n)).reshape(2, -1)
    if kind == "square":
        return start + PITCH_PX * np.column_stack([column, row])
    return start + PITCH_PX * np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])


def section(xy: np.ndarray, counts: np.ndarray, mask: np.ndarray | None = None) -> SpatialData:
    """Spots of 55 µm at 0.5 µm per pixel; the spots are given at a tenth of the image's pixels."""
    n = len(xy)
    obs = pd.DataFrame(
        {"region": pd.Categorical(["spots"] * n), "spot_id": np.arange(n)}, index=[f"s{i}" for i in range(n)]
    )
    table = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs)
    table.var_names = [f"g{i}" for i in range(counts.shape[1])]
    sdata = SpatialData(
        images={"he": Image2DModel.parse(np.zeros((3, SIZE_PX, SIZE_PX), np.uint8), dims=("c", "y", "x"))},
        shapes={
            "spots": ShapesModel.parse(
                xy / 10, geometry=0, radius=5.5, transformations={"global": Scale([10, 10], axes=("x", "y"))}
            )
        },
        tables={"counts": TableModel.parse(table, region="spots", region_key="region", instance_key="spot_id")},
    )
    if mask is not None:
        sdata.labels["tissue"] = Labels2DModel.parse(
            mask, dims=("y", "x"), transformations={"global": Scale([16, 16], axes=("x", "y"))}
        )
    return sdata


@pytest.mark.parametrize(("kind", "extra"), [("square", 12 + 4), ("hexagonal", 16)])
def test_a_plane_stays_a_plane_at_the_midpoints(kind: str, extra: int) -> None:
    xy = lattice(kind)
    counts = np.column_stack([xy[:, 0], 2 * xy[:, 0] + np.round(xy[:, 1])])
    sdata = section(xy, counts)
    enhance_spots(sdata, mpp=0.5)
    table = sdata.tables["enhanced_spots"]
    assert table.n_obs == 9 + extra
    place = table.obsm["spatial"]
    np.testing.assert_allclose(table.X.toarray()[:, 0], place[:, 0], rtol=1e-5)
    np.testing.assert_allclose(table.X.toarray()[:, 1], 2 * place[:, 0] + place[:, 1], rtol=2e-3)


def test_hand_computed_values_on_a_square_lattice() -> None:
    sdata = section(lattice("square"), np.arange(9.0)[:, None])
    enhance_spots(sdata, mpp=0.5)
    table = sdata.tables["enhanced_spots"]
    value = {
        tuple(place): x
        for place, x in zip(table.obsm["spatial"].round().astype(int), table.X.toarray()[:, 0], strict=True)
    }
    assert value[300, 300] == 0
    assert value[400, 300] == 0.5  # between 0 and 1
    assert value[300, 400] == 1.5  # between 0 and 3
    assert value[400, 400] == 2.0  # the mean of 0, 1, 3 and 4
    assert value[600, 600] == 6.0  # the mean of 4, 5, 7 and 8


def test_measured_spots_come_first_and_unchanged() -> None:
    xy = lattice("hexagonal", 4)
    counts = np.random.default_rng(0).poisson(5, (16, 3))
    sdata = section(xy, counts)
    enhance_spots(sdata)
    table = sdata.tables["enhanced_spots"]
    assert table.obs["measured"].to_numpy()[:16].all()
    assert not table.obs["measured"].to_numpy()[16:].any()
    np.testing.assert_array_equal(table.X[:16].toarray(), counts)
    np.testing.assert_allclose(table.obsm["spatial"][:16], xy)
    assert list(table.var_names) == ["g0", "g1", "g2"]


def test_over_a_missing_spot_nothing_is_interpolated() -> None:
    xy = lattice("square", 3)
    there = np.arange(9) != 4
    sdata = section(xy[there], np.ones((8, 1)))
    enhance_spots(sdata, mpp=0.5)
    place = sdata.tables["enhanced_spots"].obsm["spatial"]
    assert np.linalg.norm(place - xy[4], axis=1).min() >= 0.49 * PITCH_PX * np.sqrt(2)


def test_positions_beside_the_tissue_are_left_out_but_measured_spots_stay() -> None:
    mask = np.zeros((88, 88), np.uint8)
    mask[:, :32] = 1  # up to x = 512 px
    sdata = section(lattice("square"), np.ones((9, 1)), mask)
    enhance_spots(sdata, mpp=0.5)
    table = sdata.tables["enhanced_spots"]
    new = ~table.obs["measured"].to_numpy()
    assert table.obsm["spatial"][new, 0].max() < 512
    assert (~new).sum() == 9


def test_shapes_lie_where_the_table_says(tmp_path: Path) -> None:
    sdata = section(lattice("hexagonal", 4), np.ones((16, 2)))
    sdata.write(tmp_path / "s.zarr")
    enhance_spots(sdata)
    again = read_zarr(tmp_path / "s.zarr")
    for one in (sdata, again):
        table, shapes = one.tables["enhanced_spots"], one.shapes["enhanced_spots_shapes"]
        assert set(table.obs["region"]) == {"enhanced_spots_shapes"}
        assert (table.obs["instance_id"].to_numpy() == shapes.index).all()
        centres = get_centroids(shapes, coordinate_system="global").compute()
        np.testing.assert_allclose(centres.loc[table.obs["instance_id"], ["x", "y"]], table.obsm["spatial"])
        np.testing.assert_allclose(shapes["radius"], 55)


def test_they_are_not_taken_for_measured_spots_afterwards() -> None:
    sdata = section(lattice("hexagonal", 4), np.ones((16, 2)))
    enhance_spots(sdata)
    assert resolve_section(sdata).shapes_key == "spots"
    enhance_spots(sdata, key_added="again")
    assert sdata.tables["again"].n_obs == sdata.tables["enhanced_spots"].n_obs


def test_an_existing_name_needs_overwrite() -> None:
    sdata = section(lattice("hexagonal", 4), np.ones((16, 2)))
    enhance_spots(sdata)
    with pytest.raises(ValueError, match="'enhanced_spots_shapes' exists.*overwrite=True"):
        enhance_spots(sdata)
    sdata.tables["counts"].X = sdata.tables["counts"].X * 3
    enhance_spots(sdata, overwrite=True)
    np.testing.assert_allclose(sdata.tables["enhanced_spots"].X.toarray(), 3)


@pytest.mark.parametrize("key", ["he", "spots"])
def test_names_of_other_elements_are_refused(key: str) -> None:
    sdata = section(lattice("hexagonal", 4), np.ones((16, 2)))
    with pytest.raises(ValueError, match=f"key_added='{key}'"):
        enhance_spots(sdata, key_added=key, overwrite=True)
    assert set(sdata.shapes) == {"spots"}
    assert set(sdata.tables) == {"counts"}
