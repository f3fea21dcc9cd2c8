"""Cells and regions get the superpixels' counts by area: nothing is lost, and nothing counted twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import shapely
import squidpy as sq
from anndata import AnnData
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from spatialdata import SpatialData, join_spatialelement_table, read_zarr
from spatialdata.models import Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

from sphistex import settings, tl
from sphistex._elements import candidates

# A result whose raster starts 5 superpixels down and 3 to the right on an image of 16 px per superpixel of 8 µm.
ROWS, COLUMNS, PITCH_PX, CORNER_PX = 30, 40, 16.0, np.array([48.0, 80.0])
GENES = [f"gene{i}" for i in range(7)]


@pytest.fixture
def sdata() -> SpatialData:
    rng = np.random.default_rng(0)
    mask = np.ones((ROWS, COLUMNS), dtype=bool)
    mask[:4, :6] = mask[10:13, 20:23] = False
    ids = np.zeros(mask.shape, dtype=np.int32)
    ids[mask] = np.arange(1, mask.sum() + 1)
    row, column = np.nonzero(mask)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["superres_labels"] * len(row)),
            "instance_id": ids[mask],
            "array_row": row,
            "array_col": column,
        },
        index=[f"superres_{i}" for i in ids[mask]],
    )
    counts = rng.gamma(0.5, 2.0, (len(row), len(GENES))).astype(np.float32)
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))
    table.obsm["spatial"] = CORNER_PX + (np.column_stack([column, row]) + 0.5) * PITCH_PX
    table.uns["superres"] = {"pitch_um": 8.0, "mpp": 0.5}
    placed = Sequence([Scale([PITCH_PX] * 2, axes=("x", "y")), Translation(CORNER_PX, axes=("x", "y"))])
    microns = Sequence([placed, Scale([0.5, 0.5], axes=("x", "y"))])
    labels = Labels2DModel.parse(ids, dims=("y", "x"), transformations={"global": placed, "microns": microns})
    table = TableModel.parse(table, region="superres_labels", region_key="region", instance_key="instance_id")
    return SpatialData(labels={"superres_labels": labels}, tables={"superres": table})


def add_shapes(sdata: SpatialData, geometry: Any, system: str = "global", **columns: Any) -> None:
    """Shapes in pixels of the image, or in µm."""
    frame = GeoDataFrame(columns | {"geometry": list(geometry)}, index=columns.pop("index", None))
    sdata.shapes["cells"] = ShapesModel.parse(frame, transformations={system: Identity()})


def at(column: float, row: float, width: float, height: float) -> Any:
    """A rectangle, given in superpixels of the raster, in pixels of the image."""
    x, y = CORNER_PX + PITCH_PX * np.array([column, row])
    return shapely.box(x, y, x + width * PITCH_PX, y + height * PITCH_PX)


def counts_at(sdata: SpatialData, column: int, row: int) -> NDArray[np.float32]:
    obs = sdata.tables["superres"].obs
    return sdata.tables["superres"].X[(obs["array_row"] == row) & (obs["array_col"] == column)][0]


def test_counts_are_shared_out_by_area(sdata):
    add_shapes(sdata, [at(30, 20, 1, 1), at(30.25, 20.5, 1, 1), at(-0.5, -0.5, 1, 1), at(5.5, 3.5, 1, 1)])
    with pytest.warns(UserWarning, match="1 of 4 shapes 'cells' lie on no superpixel of the result, such as \\[2\\]"):
        tl.aggregate_by(sdata, "cells")
    table = sdata.tables["cells_superres"]
    quarters = [((30, 20), 0.375), ((31, 20), 0.125), ((30, 21), 0.375), ((31, 21), 0.125)]
    np.testing.assert_allclose(table.X[0], counts_at(sdata, 30, 20), rtol=1e-6)
    of_four = sum(share * counts_at(sdata, *where) for where, share in quarters)
    np.testing.assert_allclose(table.X[1], of_four, rtol=1e-6)
    np.testing.assert_array_equal(table.X[2], 0)
    # the lower right three quarters of the last one are on tissue
    three = sum(counts_at(sdata, *where) / 4 for where in ((6, 3), (5, 4), (6, 4)))
    np.testing.assert_allclose(table.X[3], three, rtol=1e-6)
    np.testing.assert_allclose(table.obs["area_um2"], 64)
    np.testing.assert_allclose(table.obs["covered_um2"], [64, 64, 0, 48])
    assert table.obs["n_superpixels"].tolist() == [1, 4, 0, 3]
    assert table.obs["on_superpixels"].tolist() == [True, True, False, True]
    np.testing.assert_allclose(table.obsm["spatial"][1], CORNER_PX + PITCH_PX * np.array([30.75, 21.0]))


def tiles(rng: np.random.Generator) -> list[Any]:
    """Polygons that cover the raster, and more, without gaps."""
    sites = shapely.MultiPoint(rng.uniform(-50, 800, (150, 2)))
    reach = shapely.box(-1000, -1000, 2000, 2000)
    return list(shapely.get_parts(shapely.voronoi_polygons(sites, extend_to=reach)))


@pytest.mark.parametrize("as_dask", [False, True])
def test_polygons_that_tile_the_section_conserve_counts(sdata, as_dask):
    add_shapes(sdata, tiles(np.random.default_rng(1)))
    counts = sdata.tables["superres"].X
    if as_dask:
        sdata.tables["superres"].X = da.from_array(counts, chunks=(300, 2))
    with pytest.warns(UserWarning, match="lie on no superpixel"):
        tl.aggregate_by(sdata, "cells")
    table = sdata.tables["cells_superres"]
    np.testing.assert_allclose(table.X.sum(0, dtype=float), counts.sum(0, dtype=float), rtol=1e-5)
    assert table.obs["covered_um2"].sum() == pytest.approx(64 * len(counts))


def rotated(degrees: float, scale: float) -> NDArray[np.float64]:
    """From pixels of labels to those of the image, about the middle of the raster."""
    turn = np.deg2rad(degrees)
    turned = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = CORNER_PX + PITCH_PX * np.array([COLUMNS, ROWS]) / 2
    return np.vstack([np.column_stack([turned, middle - turned @ np.array([600, 600])]), [0, 0, 1]])


@pytest.fixture(scope="module")
def cells_everywhere() -> tuple[NDArray, NDArray, NDArray]:
    """Middles of cells, their ids, and labels without any background."""
    rng = np.random.default_rng(2)
    sites, names = rng.uniform(0, 1200, (90, 2)), rng.choice(10**6, 90, replace=False) + 1
    pixel = np.indices((1200, 1200)).reshape(2, -1)[::-1].T + 0.5
    return sites, names, names[cKDTree(sites).query(pixel)[1]].reshape(1200, 1200)


@pytest.mark.filterwarnings("ignore:.*lie on no superpixel")
@pytest.mark.parametrize(("degrees", "scale", "multiscale"), [(0, 1.0, False), (0, 0.83, True), (31, 0.83, False)])
def test_labels_that_tile_the_section_conserve_counts(sdata, cells_everywhere, degrees, scale, multiscale, monkeypatch):
    monkeypatch.setattr("sphistex.tl._areas._POINTS_SIDE", 200)  # several blocks, also of the labels
    monkeypatch.setattr("sphistex.tl._areas._LABELS_SIDE", 500)
    sites, names, ids = cells_everywhere
    sdata.labels["nuclei"] = Labels2DModel.parse(
        da.from_array(ids, chunks=256),
        dims=("y", "x"),
        transformations={"global": Affine(rotated(degrees, scale), ("x", "y"), ("x", "y"))},
        scale_factors=[2] if multiscale else None,
    )
    tl.aggregate_by(sdata, "nuclei")
    table = sdata.tables["nuclei_superres"]
    assert table.obs["instance_id"].tolist() == sorted(names)
    counts = sdata.tables["superres"].X
    np.testing.assert_allclose(table.X.sum(0, dtype=float), counts.sum(0, dtype=float), rtol=1e-5)
    assert table.obs["area_um2"].sum() == pytest.approx(1200**2 * (scale * 0.5) ** 2)
    # centroids lie in their own cells, which are convex
    back = np.linalg.inv(rotated(degrees, scale))
    centres = table.obsm["spatial"] @ back[:2, :2].T + back[:2, 2]
    assert (names[cKDTree(sites).query(centres)[1]] == table.obs["instance_id"]).all()


def test_labels_and_the_outlines_of_the_same_cells_agree(sdata):
    cell = shapely.Point(301, 277).buffer(35)
    add_shapes(sdata, [cell])
    y, x = np.indices((600, 700)) + 0.5
    ids = np.where(shapely.contains_xy(cell, x, y), 5, 0).astype(np.uint16)
    sdata.labels["nuclei"] = Labels2DModel.parse(ids, dims=("y", "x"), transformations={"global": Identity()})
    tl.aggregate_by(sdata, "cells")
    tl.aggregate_by(sdata, "nuclei", genes=GENES[2:4], key_added="few")
    np.testing.assert_allclose(sdata.tables["few"].X[0], sdata.tables["cells_superres"].X[0, 2:4], rtol=0.03)
    assert list(sdata.tables["few"].var_names) == GENES[2:4]


def test_circles_and_other_coordinate_systems(sdata):
    middle = (CORNER_PX + PITCH_PX * np.array([30.0, 20.0])) * 0.5
    add_shapes(sdata, [shapely.Point(middle)], "microns", radius=[20.0])
    tl.aggregate_by(sdata, "cells")
    disk = sdata.tables["cells_superres"]
    add_shapes(sdata, [shapely.Point(middle).buffer(20.0, quad_segs=256)], "microns")
    tl.aggregate_by(sdata, "cells", overwrite=True)
    np.testing.assert_allclose(disk.X, sdata.tables["cells_superres"].X, rtol=2e-3)
    assert disk.obs["area_um2"].item() == pytest.approx(np.pi * 400)


def test_invalid_polygons_are_repaired_with_one_warning(sdata):
    x, y = CORNER_PX + PITCH_PX * np.array([30, 20])
    bow_tie = shapely.Polygon([(x, y), (x + 32, y + 32), (x + 32, y), (x, y + 32)])
    add_shapes(sdata, [bow_tie, at(3, 20, 2, 2), shapely.Polygon()], index=["aa-1", "bb-1", "cc-1"])
    with pytest.warns(UserWarning) as warned:
        tl.aggregate_by(sdata, "cells")
    assert [str(one.message).split(",")[0] for one in warned if "invalid" in str(one.message)] == [
        "1 of 3 shapes 'cells' are invalid polygons"
    ]
    table = sdata.tables["cells_superres"]
    # both triangles count
    np.testing.assert_allclose(table.obs["covered_um2"], [128, 256, 0])
    assert table.obs["instance_id"].tolist() == list(table.obs_names) == ["aa-1", "bb-1", "cc-1"]


def test_sparse_counts_stay_sparse(sdata):
    add_shapes(sdata, [at(8, 8, 3.3, 2.7), at(20, 3, 0.4, 6)])
    tl.aggregate_by(sdata, "cells")
    dense = sdata.tables["cells_superres"].X
    sdata.tables["superres"].X = sparse.csr_matrix(sdata.tables["superres"].X)
    tl.aggregate_by(sdata, "cells", overwrite=True)
    assert sparse.issparse(sdata.tables["cells_superres"].X)
    np.testing.assert_allclose(sdata.tables["cells_superres"].X.toarray(), dense, rtol=1e-6)


def test_the_table_is_linked_to_its_element_also_on_disk(sdata, tmp_path: Path):
    add_shapes(sdata, [at(3 * i, 20, 2, 2) for i in range(10)], index=[f"c{i}" for i in range(10)])
    sdata.write(tmp_path / "section.zarr")
    tl.aggregate_by(sdata, "cells", key_added="expression")
    assert "expression" not in candidates(sdata, "tables"), "and so is not taken for measured counts"
    again = read_zarr(tmp_path / "section.zarr")
    _, joined = join_spatialelement_table(sdata=again, spatial_element_names="cells", table_name="expression")
    assert joined is not None and joined.n_obs == 10
    np.testing.assert_array_equal(joined.X, sdata.tables["expression"].X)
    sq.gr.spatial_neighbors(joined, coord_type="generic", n_neighs=2)
    assert joined.obsp["spatial_connectivities"][0].nnz >= 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"element_key": "nowhere"}, KeyError, r"element_key='nowhere'.*\['cells', 'far'\].*\['superres_labels'\]"),
        ({"element_key": "superres"}, KeyError, "but in sdata.tables"),
        ({"table_key": "nowhere"}, KeyError, r"table_key='nowhere'.*\['superres'\]"),
        ({"genes": ["gene1", "ACTB"]}, KeyError, "ACTB"),
        ({"key_added": "superres"}, ValueError, "is the table that is summed"),
        ({"key_added": "cells"}, ValueError, "already the name of an element in sdata.shapes"),
        ({"element_key": "far"}, ValueError, "none of the 1 shapes 'far' lies on a superpixel"),
        ({"coordinate_system": "microns"}, ValueError, "coordinate_system='microns'.*'global'"),
    ],
)
def test_mistakes_are_named_and_change_nothing(sdata, arguments, error, message):
    add_shapes(sdata, [at(3, 20, 2, 2)])
    sdata.shapes["far"] = sdata.shapes["cells"].set_geometry(sdata.shapes["cells"].translate(1e5))
    with pytest.raises(error, match=message):
        tl.aggregate_by(sdata, **({"element_key": "cells"} | arguments))
    assert set(sdata.tables) == {"superres"}


def test_small_masks_are_as_good_as_large_ones_and_floats_are_no_names(sdata):
    mask = np.zeros((1000, 1000), dtype=np.uint8)
    mask[160:200, 160:240], mask[400:420, 400:420] = 3, 200
    sdata.labels["mask"] = Labels2DModel.parse(mask, dims=("y", "x"), transformations={"global": Identity()})
    tl.aggregate_by(sdata, "mask")
    assert sdata.tables["mask_superres"].obs["instance_id"].tolist() == [3, 200]
    assert sdata.tables["mask_superres"].obs["covered_um2"].tolist() == [800.0, 100.0]
    add_shapes(sdata, [at(3, 20, 2, 2), at(6, 20, 2, 2)])
    sdata.shapes["cells"].index = [1.0, 2.0]
    with pytest.raises(ValueError, match=r"shapes 'cells' are numbered by floats, such as \[1.0, 2.0\].*astype\(int\)"):
        tl.aggregate_by(sdata, "cells")


def test_circles_without_a_size_are_named(sdata):
    add_shapes(sdata, [shapely.Point(100, 300), shapely.Point(200, 300)], radius=[10.0, 20.0])
    sdata.shapes["cells"]["radius"] = [10.0, np.nan]
    with pytest.raises(ValueError, match=r"1 of 2 circles have a radius that is NaN.*such as \[1\]"):
        tl.aggregate_by(sdata, "cells")


def test_a_table_of_spots_is_no_result(sdata):
    add_shapes(sdata, [at(3, 20, 2, 2)])
    table = AnnData(np.ones((1, 1)), obs=pd.DataFrame({"region": ["cells"], "instance_id": [0]}, index=["0"]))
    table.obs["array_row"] = table.obs["array_col"] = 0
    table.obs["region"] = table.obs["region"].astype("category")
    sdata.tables["spots"] = TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")
    with pytest.raises(ValueError, match=r"table_key='spots' is no table of superpixels, it annotates \['cells'\]"):
        tl.aggregate_by(sdata, "cells", table_key="spots")


def test_what_has_no_area_and_what_takes_too_much_is_refused(sdata, monkeypatch):
    add_shapes(sdata, [at(3, 20, 2, 2), shapely.LineString([(100, 100), (200, 200)])])
    with pytest.raises(ValueError, match=r"1 of 2 are LineString, which have no area, such as \[1\]"):
        tl.aggregate_by(sdata, "cells")
    blank = np.zeros((10, 10), dtype=np.int32)
    for values, message in ((blank, "0 everywhere"), (blank.astype(float), "dtype float64")):
        labels = Labels2DModel.parse(blank, dims=("y", "x"), transformations={"global": Identity()})
        sdata.labels["nuclei"] = labels
        sdata.labels["nuclei"].data = values  # newer versions of spatialdata would refuse it above
        with pytest.raises(ValueError, match=f"labels 'nuclei' are .*{message}"):
            tl.aggregate_by(sdata, "nuclei")
    add_shapes(sdata, [at(3, 20, 2, 2)])
    table = sdata.tables["superres"]
    whole, table.X = table.X, table.X.copy()
    table.X[3, 2] = np.nan
    with pytest.raises(ValueError, match="'superres' has 1 counts that are NaN or infinite"):
        tl.aggregate_by(sdata, "cells")
    table.X = whole
    add_shapes(sdata, [at(3, 20, 2, 2)] * 1000)
    monkeypatch.setattr(settings, "memory_gb", 1e-5)
    with pytest.raises(ValueError, match="1,000 instances of 7 genes take .* genes="):
        tl.aggregate_by(sdata, "cells")
    table.uns["log1p"] = {}
    with pytest.raises(ValueError, match="holds logarithms"):
        tl.aggregate_by(sdata, "cells")
