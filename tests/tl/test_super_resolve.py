"""The whole job: what it adds, what bad input gets, and what is left when it is interrupted."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from scipy import sparse
from scipy.spatial import KDTree
from spatialdata import SpatialData, get_centroids, read_zarr
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

import sphistex as sx
from sphistex.bags import Bags
from sphistex.grid import Grid

GRID_PX = 16


class MeanColour:
    """Tokens are the mean colours of the patches; counts its calls, but the first, which asks for the dimension."""

    name, revision = "mean_colour", "1"

    def __init__(self) -> None:
        self.calls = -1

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        self.calls += 1
        n, height, width, _ = tiles.shape
        return tiles.reshape(n, height // 16, 16, width // 16, 16, 3).mean((2, 4)) / 255


QUICK: dict[str, Any] = {
    "encoder": MeanColour(), "epochs": 3, "n_models": 1, "hidden": (16,), "context": (0, 2), "layers": 0,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path / "cache", False
    yield
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def simulated() -> SpatialData:
    return sx.datasets.simulate(size_um=650, n_genes=8)


@pytest.fixture
def sdata(simulated: SpatialData) -> SpatialData:
    """A section in memory, to be changed at will."""
    return section(simulated)


@pytest.fixture(scope="module")
def store(simulated: SpatialData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on disk; not to be changed."""
    path = tmp_path_factory.mktemp("store") / "section.zarr"
    section(simulated).write(path)
    return path


@pytest.fixture
def backed(store: Path, tmp_path: Path) -> SpatialData:
    """A copy on disk."""
    return read_zarr(shutil.copytree(store, tmp_path / "section.zarr"))


def section(simulated: SpatialData) -> SpatialData:
    return SpatialData(
        images={"image": simulated.images["image"].copy()},
        shapes={"spots": simulated.shapes["spots"].copy()},
        tables={"counts": simulated.tables["counts"].copy()},
    )


def state(sdata: SpatialData) -> dict[str, Any]:
    """All that a refused call must not have changed, on disk as well."""
    tables = {}
    for name, table in sdata.tables.items():
        values = table.X.toarray() if sparse.issparse(table.X) else np.array(table.X)
        tables[name] = (
            values.tobytes(),
            table.obs.to_csv(),
            sorted(table.uns),
            sorted(table.obsm),
            sorted(table.layers),
        )
    files = {}
    if sdata.is_backed():
        assert isinstance(sdata.path, Path)
        files = {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size)
            for path in sorted(sdata.path.parent.rglob("*"))
            if path.is_file() and "cache" not in path.parts
        }
    elements = {kind: sorted(getattr(sdata, kind)) for kind in ("images", "labels", "points", "shapes", "tables")}
    return {"elements": elements, "attrs": copy.deepcopy(sdata.attrs), "tables": tables, "files": files}


def maps(sdata: SpatialData, key: str = "superres") -> np.ndarray:
    return np.asarray(sdata.tables[key].X)


# ---------------------------------------------------------------------------------------------- the result


@pytest.fixture(scope="module")
def resolved(simulated: SpatialData, tmp_path_factory: pytest.TempPathFactory) -> SpatialData:
    """A result, not to be changed."""
    sx.settings.cache_dir = tmp_path_factory.mktemp("cache")
    sdata = section(simulated)
    sx.tl.super_resolve(sdata, **(QUICK | {"epochs": 30}))
    return sdata


def spot_sums(sdata: SpatialData, key: str = "superres") -> np.ndarray:
    """Counts of the superpixels of each spot, by their share of area inside it."""
    table, spots = sdata.tables[key], sdata.shapes["spots"]
    image = sdata.images["image"]
    grid = Grid.over_image((image.sizes["y"], image.sizes["x"]), mpp=8 / GRID_PX)
    xy = np.column_stack([spots.geometry.x, spots.geometry.y])
    column, row = np.floor(table.obsm["spatial"] / GRID_PX).astype(int).T
    weights = Bags.from_disks(grid, xy, spots["radius"].to_numpy()).weights
    return weights[:, row * grid.shape[1] + column] @ np.asarray(table.X)


def test_counts_come_out(resolved: SpatialData) -> None:
    table = resolved.tables["superres"]
    assert table.X.dtype == np.float32
    assert np.isfinite(table.X).all()
    assert table.X.min() >= 0
    assert list(table.var_names) == list(resolved.tables["counts"].var_names)
    measured = resolved.tables["counts"].X.sum(0)
    np.testing.assert_allclose(spot_sums(resolved).sum(0), np.ravel(measured), rtol=0.25)


def test_superpixels_of_a_spot_add_up_to_about_its_counts(resolved: SpatialData) -> None:
    measured = resolved.tables["counts"].to_df().to_numpy().sum(1)
    assert np.corrcoef(spot_sums(resolved).sum(1), measured)[0, 1] > 0.5


def test_which_superpixels_lie_in_spots_is_said(resolved: SpatialData) -> None:
    table, spots = resolved.tables["superres"], resolved.shapes["spots"]
    xy = np.column_stack([spots.geometry.x, spots.geometry.y])
    distance = np.linalg.norm(table.obsm["spatial"][:, None] - xy, axis=-1).min(1)
    radius = spots["radius"].median()
    in_spot = table.obs["in_spot"].to_numpy()
    assert in_spot[distance < radius - GRID_PX].all()
    assert not in_spot[distance > radius + GRID_PX].any()


def test_how_it_was_made_is_recorded_and_can_be_written(resolved: SpatialData, tmp_path: Path) -> None:
    made = resolved.tables["superres"].uns["superres"]
    assert made["encoder"]["encoder"] == "mean_colour"
    names = {"image_key": "image", "shapes_key": "spots", "table_key": "counts", "coordinate_system": "global"}
    assert names.items() <= made["section"].items()
    assert made["mpp"] == pytest.approx(0.5)
    assert made["pitch_um"] == 8
    assert made["seed"] == 0
    assert made["params"]["n_models"] == 1
    assert {"sphistex", "torch", "python"} <= set(made["versions"])
    assert len(made["training"]["train_loss"]) == len(made["training"]["validation_loss"])
    assert not _tuples(dict(resolved.tables["superres"].uns))
    resolved.tables["superres"].write_h5ad(tmp_path / "table.h5ad")


def _tuples(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [found for item in value.values() for found in _tuples(item)]
    return [value] if isinstance(value, tuple) else []


def test_counts_are_conserved_when_asked_for(sdata: SpatialData) -> None:
    sx.tl.super_resolve(sdata, conserve_counts=True, **QUICK)
    measured = sdata.tables["counts"].to_df().to_numpy()
    found = spot_sums(sdata)
    np.testing.assert_allclose(found, measured, rtol=1e-4, atol=1e-4)
    assert maps(sdata).min() >= 0
    assert sdata.tables["superres"].uns["superres"]["conserve_counts"]


def test_same_seed_same_result_other_seed_other_result(sdata: SpatialData) -> None:
    for key, seed in (("one", 5), ("two", 5), ("other", 6)):
        sx.tl.super_resolve(sdata, key_added=key, seed=seed, **QUICK)
    np.testing.assert_array_equal(maps(sdata, "one"), maps(sdata, "two"))
    assert np.abs(maps(sdata, "one") - maps(sdata, "other")).max() > 1e-3


def test_genes_by_name_and_by_number(sdata: SpatialData) -> None:
    names = list(sdata.tables["counts"].var_names[[4, 1]])
    sx.tl.super_resolve(sdata, genes=names, **QUICK)
    assert list(sdata.tables["superres"].var_names) == names
    sx.tl.super_resolve(sdata, genes=3, key_added="three", **QUICK)
    assert sdata.tables["three"].n_vars == 3


def test_genes_without_counts_are_named_and_left_out(sdata: SpatialData) -> None:
    counts = sdata.tables["counts"]
    names = list(counts.var_names[:3])
    counts.X = sparse.csr_matrix(counts.X.toarray() * (np.arange(counts.n_vars) != 1))
    with pytest.warns(UserWarning, match=f"left out: {names[1]}$"):
        sx.tl.super_resolve(sdata, genes=names, **QUICK)
    assert list(sdata.tables["superres"].var_names) == [names[0], names[2]]
    with pytest.raises(ValueError, match="none of them has a count"):
        sx.tl.fit(sdata, genes=[names[1]])


# ------------------------------------------------------------------------------------------ shapes of input


def test_alpha_makes_no_difference(sdata: SpatialData, resolved: SpatialData) -> None:
    pixels = np.asarray(sdata.images["image"])
    rgba = np.concatenate([pixels, np.full_like(pixels[:1], 7)])
    sdata.images["image"] = Image2DModel.parse(rgba, dims=("c", "y", "x"))
    sx.tl.super_resolve(sdata, **(QUICK | {"epochs": 30}))
    np.testing.assert_allclose(maps(sdata), maps(resolved), atol=1e-5)


@pytest.mark.parametrize("mirror", [1, -1])
def test_rotated_mirrored_and_scaled_spots_give_the_same(
    sdata: SpatialData, resolved: SpatialData, mirror: int
) -> None:
    angle, scale = 2.2, 0.3
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1, mirror])
    to_slide = np.block([[turn, np.array([[40.0], [-7.0]])], [np.zeros((1, 2)), np.ones((1, 1))]])
    spots = sdata.shapes["spots"]
    xy = np.column_stack([spots.geometry.x, spots.geometry.y]) @ turn.T + [40.0, -7.0]
    slide = Affine(to_slide, ("x", "y"), ("x", "y"))
    image = Image2DModel.parse(
        np.asarray(sdata.images["image"]), dims=("c", "y", "x"), transformations={"slide": slide}
    )
    circles = ShapesModel.parse(
        xy, geometry=0, radius=scale * spots["radius"].iloc[0], index=spots.index, transformations={"slide": Identity()}
    )
    turned = SpatialData(images={"image": image}, shapes={"spots": circles}, tables={"counts": sdata.tables["counts"]})
    sx.tl.super_resolve(turned, **(QUICK | {"epochs": 30}))
    np.testing.assert_allclose(maps(turned), maps(resolved), rtol=1e-3, atol=1e-4)
    table = turned.tables["superres"]
    np.testing.assert_allclose(table.obsm["spatial"], resolved.tables["superres"].obsm["spatial"], atol=1e-6)
    centroids = get_centroids(turned.labels["superres_labels"], coordinate_system="slide").compute()
    expected = table.obsm["spatial"] @ turn.T + [40.0, -7.0]
    np.testing.assert_allclose(centroids.loc[table.obs["instance_id"], ["x", "y"]], expected, atol=1e-3)


def test_objects_of_spatialdata_io_are_taken_as_they_are(simulated: SpatialData, resolved: SpatialData) -> None:
    pixels = np.asarray(simulated.images["image"])
    full = Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=[2], transformations={"A": Identity()})
    hires = Image2DModel.parse(
        pixels[:, ::4, ::4], dims=("c", "y", "x"),
        transformations={"A_downscaled_hires": Identity(), "A": Scale([4, 4], ("x", "y"))},
    )  # fmt: skip
    spots = simulated.shapes["spots"]
    circles = ShapesModel.parse(
        np.column_stack([spots.geometry.x, spots.geometry.y]), geometry=0, radius=spots["radius"].iloc[0],
        index=spots.index, transformations={"A": Identity(), "A_downscaled_hires": Scale([0.25, 0.25], ("x", "y"))},
    )  # fmt: skip
    counts = simulated.tables["counts"].copy()
    counts.obs["region"] = pd.Categorical(["A"] * counts.n_obs)
    del counts.uns["spatialdata_attrs"]
    table = TableModel.parse(counts, region="A", region_key="region", instance_key="spot_id")
    images = {"A_hires_image": hires, "A_full_image": full}
    visium = SpatialData(images=images, shapes={"A": circles}, tables={"table": table})
    sx.tl.super_resolve(visium, **(QUICK | {"epochs": 30}))
    # the mask may be found on a coarser level of the pyramid, so that it differs here and there at the border
    assert visium.tables["superres"].n_obs == pytest.approx(resolved.tables["superres"].n_obs, rel=0.01)
    np.testing.assert_allclose(maps(visium).mean(0), maps(resolved).mean(0), rtol=0.05)
    assert visium.tables["superres"].uns["superres"]["section"]["image_key"] == "A_full_image"


def visium_hd(simulated: SpatialData) -> tuple[SpatialData, np.ndarray]:
    """The simulated section as bins of 8 µm that lie across the grid, with few counts each, and what is expected."""
    truth = simulated.tables["truth"]
    xy = truth.obsm["spatial"] - GRID_PX / 4
    outlines = shapely.box(*(xy - GRID_PX / 2).T, *(xy + GRID_PX / 2).T)
    name, numbers = "A_square_008um", np.arange(len(xy))
    obs = pd.DataFrame({"region": pd.Categorical([name] * len(xy)), "bin": numbers}, index=numbers.astype(str))
    expected = 0.02 * np.asarray(truth.X.toarray() if sparse.issparse(truth.X) else truth.X)
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(expected).astype(np.float32))
    table = TableModel.parse(
        ad.AnnData(counts, obs=obs, var=truth.var), region=name, region_key="region", instance_key="bin"
    )
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=outlines), transformations={"A": Identity()})
    image = Image2DModel.parse(
        np.asarray(simulated.images["image"]), dims=("c", "y", "x"), transformations={"A": Identity()}
    )
    hd = SpatialData(images={"A_full_image": image}, shapes={name: shapes}, tables={"square_008um": table})
    return hd, expected


def test_bins_of_visium_hd_are_denoised(simulated: SpatialData) -> None:
    hd, expected = visium_hd(simulated)
    sx.tl.super_resolve(hd, **(QUICK | {"layers": 1, "epochs": 10}))
    table, bins = hd.tables["superres"], hd.tables["square_008um"]
    counts = bins[:, table.var_names].X.toarray()
    assert table.X[table.obs["in_spot"]].sum() == pytest.approx(counts.sum(), rel=0.1)
    expected = expected[:, bins.var_names.get_indexer(table.var_names)]
    _, place = KDTree(table.obsm["spatial"]).query(simulated.tables["truth"].obsm["spatial"])

    def correlation(values: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(values.T, expected.T, strict=True)]))

    assert correlation(table.X[place]) > correlation(counts) + 0.02


def test_results_and_enhanced_spots_are_not_mistaken_for_input(sdata: SpatialData) -> None:
    sx.pp.enhance_spots(sdata)
    sx.tl.super_resolve(sdata, **QUICK)
    sx.tl.super_resolve(sdata, key_added="again", **QUICK)
    np.testing.assert_array_equal(maps(sdata, "again"), maps(sdata))


# ------------------------------------------------------------------------------------------------ bad input


def drop(kind: str, name: str) -> Callable[[SpatialData], None]:
    def change(sdata: SpatialData) -> None:
        del getattr(sdata, kind)[name]

    return change


def add(kind: str, name: str, element: Callable[[SpatialData], Any]) -> Callable[[SpatialData], None]:
    def change(sdata: SpatialData) -> None:
        getattr(sdata, kind)[name] = element(sdata)

    return change


def pixels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[SpatialData], None]:
    def element(sdata: SpatialData) -> Any:
        return Image2DModel.parse(change(np.asarray(sdata.images["image"])), dims=("c", "y", "x"))

    return add("images", "image", element)


def value(number: float) -> Callable[[SpatialData], None]:
    def change(sdata: SpatialData) -> None:
        values = sdata.tables["counts"].to_df().to_numpy().astype(np.float32)
        values[2, 1] = number
        sdata.tables["counts"].X = values

    return change


def normalised(sdata: SpatialData) -> None:
    sdata.tables["counts"].X = np.log1p(sdata.tables["counts"].to_df().to_numpy())


def duplicated_genes(sdata: SpatialData) -> None:
    names = list(sdata.tables["counts"].var_names)
    sdata.tables["counts"].var_names = [names[0], *names[:-1]]


def few_spots(sdata: SpatialData) -> None:
    sdata.tables["counts"] = sdata.tables["counts"][:15].copy()


def other_region(sdata: SpatialData) -> None:
    table = sdata.tables["counts"].copy()
    table.obs["region"] = pd.Categorical(["cells"] * table.n_obs)
    del table.uns["spatialdata_attrs"]
    sdata.tables["counts"] = TableModel.parse(table, region="cells", region_key="region", instance_key="spot_id")


def little_tissue(sdata: SpatialData) -> None:
    mask = np.zeros(Grid.over_image(sdata.images["image"].shape[1:], 0.5).shape, np.uint8)
    mask[:30, :30] = 1
    sdata.labels["tissue"] = Labels2DModel.parse(mask, dims=("y", "x"))


def moved(matrix: list[list[float]], system: str = "global") -> Callable[[SpatialData], None]:
    def change(sdata: SpatialData) -> None:
        spots = sdata.shapes["spots"]
        set_transformation(spots, {system: Affine(np.array(matrix), ("x", "y"), ("x", "y"))}, set_all=True)

    return change


def nothing(sdata: SpatialData) -> None:
    pass


def labels(shape: tuple[int, int]) -> Callable[[SpatialData], Any]:
    return lambda sdata: Labels2DModel.parse(np.ones(shape, np.int32), dims=("y", "x"))


IDENTITY = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
SHEAR = [[1.0, 0.4, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
BAD: dict[str, tuple[Callable[[SpatialData], None], dict[str, Any], type[Exception], str]] = {
    "no image": (drop("images", "image"), {}, ValueError, "no image"),
    "no shapes": (drop("shapes", "spots"), {}, ValueError, "no shapes"),
    "no table": (drop("tables", "counts"), {}, ValueError, "no table"),
    "two images": (add("images", "other", lambda s: s.images["image"]), {}, ValueError, "'image', 'other'.*image_key="),
    "two tables": (add("tables", "more", lambda s: s.tables["counts"]), {}, ValueError, "'counts', 'more'.*table_key="),
    "table of others": (other_region, {}, ValueError, "no table annotates the shapes 'spots'.*'cells'"),
    "absent image": (nothing, {"image_key": "absent"}, KeyError, "image_key='absent'.*'image'"),
    "absent shapes": (nothing, {"shapes_key": "absent"}, KeyError, "shapes_key='absent'.*'spots'"),
    "absent table": (nothing, {"table_key": "absent"}, KeyError, "table_key='absent'.*'counts'"),
    "absent system": (nothing, {"coordinate_system": "absent"}, ValueError, "coordinate_system='absent'.*'global'"),
    "negative counts": (value(-3), {}, ValueError, "'counts' has negative values .minimum -3"),
    "missing counts": (value(np.nan), {}, ValueError, "'counts' has 1 counts that are NaN"),
    "infinite counts": (value(np.inf), {}, ValueError, "'counts' has 1 counts that are NaN or infinite"),
    "normalised counts": (normalised, {"strict": True}, ValueError, "'counts' looks normalised.*raw counts"),
    "duplicated genes": (duplicated_genes, {}, ValueError, "duplicated gene names.*var_names_make_unique"),
    "few spots": (few_spots, {}, ValueError, "15 of 15 spots lie on tissue, at least 20"),
    "little tissue": (little_tissue, {}, ValueError, "spots lie on tissue, at least 20 are needed.*mask="),
    "spots outside": (pixels(lambda p: p[:, :900, :900]), {}, ValueError, "lie outside the image 'image'.*900"),
    "no common system": (moved(IDENTITY, "elsewhere"), {}, ValueError, "'elsewhere'.*no coordinate system in common"),
    "shearing system": (moved(SHEAR), {}, ValueError, "sheared or stretched"),
    "16-bit image": (pixels(lambda p: p.astype(np.uint16)), {}, ValueError, "uint16.*8-bit"),
    "grey image": (pixels(lambda p: p[:1]), {}, ValueError, "single channel.*RGB"),
    "contradicting mpp": (nothing, {"mpp": 0.8}, ValueError, "mpp=0.8 contradicts the spots.*0.5 µm"),
    "impossible mpp": (nothing, {"mpp": -1.0}, ValueError, "mpp=-1.0"),
    "absent genes": (nothing, {"genes": ["NPHS2", "UMOD"]}, KeyError, "'NPHS2', 'UMOD'"),
    "a gene as string": (nothing, {"genes": "UMOD"}, TypeError, r"genes='UMOD'.*\['UMOD'\]"),
    "no genes": (nothing, {"genes": []}, ValueError, "genes is empty"),
    "zero genes": (nothing, {"genes": 0}, ValueError, "genes=0"),
    "half a gene": (nothing, {"genes": 2.5}, TypeError, "genes=2.5"),
    "preset": (nothing, {"preset": "papers"}, ValueError, "preset='papers'.*'paper'"),
    "parameter": (nothing, {"epoch": 3}, ValueError, "'epoch'.*'epochs'"),
    "objective": (nothing, {"objective": "absolute"}, ValueError, "objective='absolute'.*'poisson'"),
    "heads": (nothing, {"layers": 1, "d": 50, "heads": 8}, ValueError, "d=50.*heads=8"),
    "seed": (nothing, {"seed": -1}, ValueError, "seed=-1"),
    "device": (nothing, {"device": "gpu"}, ValueError, "device='gpu'.*'?cuda"),
}  # fmt: skip
MORE_BAD: dict[str, tuple[Callable[[SpatialData], None], dict[str, Any], type[Exception], str]] = {
    "encoder": (nothing, {"encoder": "uni9"}, ValueError, "encoder='uni9'"),
    "weights": (nothing, {"encoder": "uni", "weights": "absent.bin"}, FileNotFoundError, "absent.bin"),
    "key_added exists": (
        add("tables", "superres", lambda s: s.tables["counts"]), {"table_key": "counts"},
        ValueError, "key_added='superres' exists.*overwrite=True",
    ),
    "labels exist": (
        add("labels", "superres_labels", labels((9, 9))), {}, ValueError, "'superres_labels' exists.*overwrite=True",
    ),
    "name of an image": (nothing, {"key_added": "image"}, ValueError, "key_added='image'.*sdata.images"),
    "name of the input": (nothing, {"key_added": "counts", "overwrite": True}, ValueError, "key_added='counts'"),
    "features over the image": (
        nothing, {"features_key": "image", "overwrite": True}, ValueError, "features_key='image' is the H&E image",
    ),
    "name with a slash": (nothing, {"key_added": "a/b"}, ValueError, "key_added='a/b'"),
    "tissue on another grid": (
        add("labels", "tissue", labels((9, 9))), {}, ValueError, r"tissue_key='tissue' has shape \(9, 9\).*tissue_mask",
    ),
    "features of somebody else": (
        add("images", "superpixel_features", lambda s: s.images["image"]), {"image_key": "image"},
        ValueError, "'superpixel_features' exists.*overwrite=True",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", [*BAD, *MORE_BAD])
def test_bad_input_is_refused_before_any_work_and_changes_nothing(backed: SpatialData, case: str) -> None:
    change, arguments, error, message = (BAD | MORE_BAD)[case]
    change(backed)
    encoder, before = MeanColour(), state(backed)
    with pytest.raises(error, match=f"(?s){message}"):
        sx.tl.super_resolve(backed, **(QUICK | {"encoder": encoder} | arguments))
    assert encoder.calls <= 0, "nothing was encoded"
    assert state(backed) == before


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", BAD)
def test_fit_and_predict_refuse_the_same(resolved: SpatialData, simulated: SpatialData, case: str) -> None:
    change, arguments, error, message = BAD[case]
    sdata = section(simulated)
    sdata.labels["tissue"] = resolved.labels["tissue"]
    sdata.images["superpixel_features"] = resolved.images["superpixel_features"]
    sdata.attrs = copy.deepcopy(resolved.attrs)
    change(sdata)
    before = state(sdata)
    with pytest.raises(error, match=f"(?s){message}"):
        sx.tl.fit(sdata, **({name: value for name, value in QUICK.items() if name != "encoder"} | arguments))
    assert state(sdata) == before


def test_counts_that_look_normalised_get_a_warning(sdata: SpatialData) -> None:
    normalised(sdata)
    with pytest.warns(UserWarning, match="'counts' looks normalised.*not whole numbers"):
        sx.tl.super_resolve(sdata, **QUICK)
    assert np.isfinite(maps(sdata)).all()


# -------------------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize("on_disk", [False, True])
def test_overwrite_replaces(on_disk: bool, backed: SpatialData, sdata: SpatialData) -> None:
    sdata = backed if on_disk else sdata
    sx.tl.super_resolve(sdata, seed=1, **QUICK)
    first = maps(sdata).copy()
    before = state(sdata)
    with pytest.raises(ValueError, match="overwrite=True"):
        sx.tl.super_resolve(sdata, seed=2, **QUICK)
    assert state(sdata) == before
    sx.tl.super_resolve(sdata, seed=2, overwrite=True, genes=5, **QUICK)
    assert sdata.tables["superres"].n_vars == 5 != first.shape[1]
    assert sdata.tables["superres"].uns["superres"]["seed"] == 2
    if on_disk:
        again = read_zarr(backed.path)
        np.testing.assert_array_equal(maps(again), maps(sdata))
        assert again.tables["superres"].uns["superres"]["seed"] == 2


def test_a_store_holds_what_is_in_memory(backed: SpatialData) -> None:
    sx.tl.super_resolve(backed, **QUICK)
    again = read_zarr(backed.path)
    for kind in ("images", "labels", "shapes", "tables"):
        assert set(getattr(again, kind)) == set(getattr(backed, kind))
    assert {"superpixel_features"} <= set(again.images)
    assert {"tissue", "superres_labels"} <= set(again.labels)
    one, two = backed.tables["superres"], again.tables["superres"]
    np.testing.assert_array_equal(one.X, two.X)
    np.testing.assert_array_equal(one.obsm["spatial"], two.obsm["spatial"])
    pd.testing.assert_frame_equal(one.obs, two.obs, check_dtype=False, check_categorical=False)
    np.testing.assert_array_equal(backed.labels["superres_labels"], again.labels["superres_labels"])
    np.testing.assert_array_equal(backed.images["superpixel_features"], again.images["superpixel_features"])
    assert again.attrs == backed.attrs
    assert os.listdir(backed.path.parent) == ["section.zarr"] or sorted(os.listdir(backed.path.parent)) == [
        "cache", "section.zarr",
    ]  # fmt: skip


def test_features_are_made_once(backed: SpatialData) -> None:
    encoder = MeanColour()
    sx.tl.super_resolve(backed, **(QUICK | {"encoder": encoder}))
    once = encoder.calls
    assert once > 0
    sx.tl.super_resolve(read_zarr(backed.path), key_added="again", **(QUICK | {"encoder": encoder}))
    assert encoder.calls == once + 1, "only the dimension was asked for"


KILLED = textwrap.dedent("""
    import os, signal, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    torch.set_num_threads(1)
    from spatialdata import read_zarr
    import sphistex as sx
    sx.settings.progress = False
    sx.tl.super_resolve, sx.pp.tissue_mask  # imported once, before forking
    steps = 0

    def colour(tiles):
        n, h, w, _ = tiles.shape
        return tiles.reshape(n, h // 16, 16, w // 16, 16, 3).mean((2, 4)) / 255

    def resolve(path):
        sx.tl.super_resolve(read_zarr(path), encoder=colour, epochs=1, n_models=1, layers=0, context=(0,), device="cpu")

    def counted(rename, deadline):
        def step(*args, **kwargs):
            for do in (lambda: None, lambda: rename(*args, **kwargs)):
                do()
                globals()["steps"] += 1
                if steps == deadline:
                    os.kill(os.getpid(), signal.SIGKILL)
        return step

    def child(work):
        # all work is done in children: a fork of a process that has started threads would hang
        if os.fork() == 0:
            os._exit(work() or 0)
        return os.waitstatus_to_exitcode(os.wait()[1])

    def killed(path, deadline):
        os.rename = counted(os.rename, deadline)
        resolve(path)
        return steps

    def look_and_run_again(path):
        found = read_zarr(path)
        print("superres_labels" in found.labels, "superres" in found.tables, flush=True)
        if "superres" not in found.tables:
            resolve(path)
            assert read_zarr(path).tables["superres"].n_obs > 0

    first, *copies = sys.argv[1:]
    last = child(lambda: killed(first, None))
    for n, path in enumerate(copies):
        print(child(lambda: killed(path, last - n)), end=" ", flush=True)
        assert child(lambda: look_and_run_again(path)) == 0
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_time_the_store_is_readable_and_the_next_run_completes(store: Path, tmp_path: Path) -> None:
    """The last renamings put labels and table in place; those of mask and feature map have tests of their own."""
    made = read_zarr(shutil.copytree(store, tmp_path / "made.zarr"))
    sx.pp.tissue_mask(made)
    copies = [shutil.copytree(tmp_path / "made.zarr", tmp_path / f"copy{n}.zarr") for n in range(5)]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, copies)], capture_output=True, text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    killed, *found = zip(*lines, strict=True)
    assert set(killed) == {str(-int(signal.SIGKILL))}
    # just after and before the table is renamed into place, and just after and before its labels are
    assert list(zip(*found, strict=True)) == [
        ("True", "True"),
        ("True", "False"),
        ("True", "False"),
        ("False", "False"),
    ]
