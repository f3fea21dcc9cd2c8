"""The result as scanpy, squidpy, spatialdata and spatialdata-plot take it: each must run, and say what is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import shapely
import spatialdata as sd
import spatialdata_plot  # noqa: F401
import squidpy as sq
from anndata import AnnData
from geopandas import GeoDataFrame
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData, read_zarr
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

import sphistex as sx

pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(0)


def colour_and_texture(tiles: np.ndarray) -> np.ndarray:
    """Mean and spread of the colours of every patch: quick, and enough to tell compartments apart."""
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // 16, 16, width // 16, 16, 3).astype(np.float32)
    return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], axis=-1)


@pytest.fixture(scope="module")
def sdata(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpatialData]:
    """A super-resolved section of more than 9,000 superpixels, with the compartment that each lies in."""
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    sdata = sx.datasets.simulate(size_um=820, n_genes=60, seed=1)
    sx.tl.super_resolve(sdata, encoder=colour_and_texture, n_models=1, epochs=80, patience=20, device="cpu")
    table = sdata.tables["superres"]
    table.obs["compartment"] = compartments(sdata)
    yield sdata
    sx.settings.cache_dir, sx.settings.progress = before


def compartments(sdata: SpatialData) -> np.ndarray:
    """True compartment of every superpixel of the result, by its centre."""
    row, column = superpixel(sdata.tables["superres"])
    truth = sdata.tables["truth"].obs.set_index("instance_id")["compartment"]
    found = truth.reindex(np.asarray(sdata.labels["truth_labels"])[row, column])
    return found.astype(object).fillna("none").to_numpy()


def superpixel(table: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns on the grid over the whole image, which is of 16 px here."""
    column, row = np.floor(table.obsm["spatial"] / 16).astype(int).T
    return row, column


def raw(sdata: SpatialData) -> AnnData:
    return sdata.tables["superres"].copy()


@pytest.fixture(scope="module")
def analysed(sdata: SpatialData) -> AnnData:
    """What every scanpy tutorial does first."""
    adata = raw(sdata)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=20)
    sc.pp.pca(adata, n_comps=10)
    sc.pp.neighbors(adata, n_neighbors=15)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, resolution=0.2)
    return adata


@pytest.fixture(scope="module")
def on_grid(sdata: SpatialData) -> AnnData:
    """The result with its lattice neighbours, the first gene a smooth pattern and the second the same, shuffled."""
    adata = raw(sdata)
    x, y = adata.obsm["spatial"].T
    planted = 2 + np.sin(x / 200) + np.cos(y / 150)
    adata.X[:, 0], adata.X[:, 1] = planted, RNG.permutation(planted)
    sq.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=4)
    return adata


# ----------------------------------------------------------------------------------------------- scanpy


def test_the_result_is_large_enough_for_this_test(sdata: SpatialData) -> None:
    assert sdata.tables["superres"].n_obs > 9000


def test_totals_are_normalised(sdata: SpatialData) -> None:
    adata = raw(sdata)
    before = np.asarray(adata.X).sum(1)
    sc.pp.normalize_total(adata)
    after = np.asarray(adata.X).sum(1)
    np.testing.assert_allclose(after[before > 0], np.median(before[before > 0]), rtol=1e-3)


def test_highly_variable_genes_are_those_that_vary(analysed: AnnData) -> None:
    chosen, kind = analysed.var["highly_variable"], analysed.var["kind"]
    assert chosen.sum() == 20
    broad = kind == "broad"
    assert broad[chosen].mean() < broad[~chosen].mean(), "and of gradients, not those that are everywhere"


def test_components_separate_compartments(analysed: AnnData) -> None:
    explained = analysed.uns["pca"]["variance_ratio"]
    assert (np.diff(explained) <= 1e-6).all()
    scores = analysed.obsm["X_pca"][:, 0]
    groups = [scores[analysed.obs["compartment"] == name] for name in analysed.obs["compartment"].unique()]
    between = sum(len(group) * (group.mean() - scores.mean()) ** 2 for group in groups)
    assert between / ((scores - scores.mean()) ** 2).sum() > 0.2


def test_neighbours_lie_in_the_same_compartment(analysed: AnnData) -> None:
    graph = sparse.coo_matrix(analysed.obsp["connectivities"])
    assert graph.shape == (analysed.n_obs,) * 2
    assert (np.bincount(graph.row, minlength=analysed.n_obs) > 0).all()
    compartment = analysed.obs["compartment"].to_numpy()
    together = (compartment[graph.row] == compartment[graph.col]).mean()
    by_chance = (compartment[graph.row] == RNG.permutation(compartment)[graph.col]).mean()
    assert together > by_chance + 0.2


def test_clusters_agree_with_compartments(analysed: AnnData) -> None:
    cluster, compartment = analysed.obs["leiden"], analysed.obs["compartment"]
    assert 2 <= cluster.nunique() <= 40
    assert adjusted_rand_score(compartment, cluster) > 0.1
    assert abs(adjusted_rand_score(compartment, RNG.permutation(cluster))) < 0.02


def test_umap_keeps_clusters_together(analysed: AnnData) -> None:
    some = analysed[RNG.choice(analysed.n_obs, 1200, replace=False)].copy()
    sc.pp.neighbors(some)
    sc.tl.umap(some, maxiter=100)
    place = some.obsm["X_umap"]
    assert place.shape == (1200, 2)
    assert np.isfinite(place).all()
    cluster = some.obs["leiden"].to_numpy()
    nearest = np.linalg.norm(place[:, None] - place, axis=-1).argsort(1)[:, 1]
    assert (cluster[nearest] == cluster).mean() > 0.6


def test_top_genes_of_a_compartment_are_truly_higher_there(analysed: AnnData, sdata: SpatialData) -> None:
    large = analysed.obs["compartment"].value_counts().loc[lambda n: n > 300].index.drop("none", errors="ignore")
    adata = analysed[analysed.obs["compartment"].isin(large)].copy()
    sc.tl.rank_genes_groups(adata, "compartment", method="t-test")
    truth = sdata.tables["truth"]
    expected = truth[:, analysed.var_names].to_df("expected")
    expected = expected.div(expected.sum(axis=1), axis=0)
    folds = {}
    for name in large:
        inside = (truth.obs["compartment"] == name).to_numpy()
        top = list(sc.get.rank_genes_groups_df(adata, name)["names"][:5])
        folds[name] = float(np.log2(expected.loc[inside, top].mean() / expected.loc[~inside, top].mean()).mean())
    assert np.mean(list(folds.values())) > 0.5, folds
    assert np.mean(np.array(list(folds.values())) > 0) >= 0.75, folds


# ----------------------------------------------------------------------------------------------- squidpy


def test_neighbours_on_the_grid_are_one_superpixel_apart(on_grid: AnnData) -> None:
    edges = sparse.coo_matrix(on_grid.obsp["spatial_connectivities"])
    degree = np.bincount(edges.row, minlength=on_grid.n_obs)
    assert degree.max() == np.median(degree) == 4
    place = on_grid.obs[["array_row", "array_col"]].to_numpy()
    assert (np.abs(place[edges.row] - place[edges.col]).sum(1) == 1).all()


def test_morans_i_finds_a_planted_pattern_and_none_in_noise(on_grid: AnnData) -> None:
    sq.gr.spatial_autocorr(on_grid, mode="moran", genes=list(on_grid.var_names[:12]), n_jobs=1)
    found = on_grid.uns["moranI"]["I"]
    planted, shuffled, *others = on_grid.var_names[:12]
    assert found[planted] > 0.95
    assert abs(found[shuffled]) < 0.05
    assert found[others].min() > 0.3, "the predicted maps are maps, not noise"


def test_sepal_ranks_a_planted_pattern_above_noise(on_grid: AnnData) -> None:
    adata = on_grid[:, :2].copy()
    patch = adata.obs["array_row"] // 6 * 1000 + adata.obs["array_col"] // 6
    high = 5.0 * patch.isin(RNG.choice(patch.unique(), patch.nunique() // 2, replace=False)).to_numpy()
    adata.X = np.column_stack([high, RNG.permutation(high)])
    planted, shuffled = adata.var_names
    sq.gr.sepal(adata, max_neighs=4, genes=[planted, shuffled], n_iter=6000, n_jobs=1, show_progress_bar=False)
    score = adata.uns["sepal_score"]["sepal_score"]
    assert score[planted] > 1.5 * score[shuffled] > 0


def test_compartments_are_their_own_neighbours(on_grid: AnnData) -> None:
    large = on_grid.obs["compartment"].value_counts().loc[lambda n: n > 300].index
    adata = on_grid[on_grid.obs["compartment"].isin(large)].copy()
    adata.obs["compartment"] = adata.obs["compartment"].astype("category")
    sq.gr.nhood_enrichment(adata, cluster_key="compartment", n_perms=30, seed=0, show_progress_bar=False)
    z = adata.uns["compartment_nhood_enrichment"]["zscore"]
    assert (np.argmax(z, axis=1) == np.arange(len(z))).all()
    assert np.diag(z).min() > 5


def test_spatial_scatter_draws_every_superpixel_at_its_place_on_the_picture(sdata: SpatialData) -> None:
    adata = raw(sdata)[::7].copy()
    gene = adata.var_names[0]
    sq.pl.spatial_scatter(adata, color=gene)
    axes = plt.gcf().axes[0]
    (picture,) = axes.get_images()
    height, width = np.asarray(picture.get_array()).shape[:2]
    assert max(height, width) <= 2000
    (superpixels,) = axes.collections
    drawn = np.array([path.get_extents().get_points().mean(0) for path in superpixels.get_paths()])
    if len(drawn) != adata.n_obs:
        drawn = np.asarray(superpixels.get_offsets())
    shown = superpixels.get_array()
    scale = adata.uns["spatial"]["superres"]["scalefactors"]["tissue_hires_scalef"]
    np.testing.assert_allclose(drawn, adata.obsm["spatial"] * scale, atol=0.6)
    assert shown is not None
    np.testing.assert_allclose(np.asarray(shown), np.asarray(adata[:, gene].X).ravel(), rtol=1e-6)
    factor = sdata.images["image"].sizes["x"] / width
    assert scale == pytest.approx(1 / factor, rel=0.01)
    plt.close("all")


# ----------------------------------------------------------------------------------------------- spatialdata


def test_labels_and_table_say_the_same_of_every_superpixel(sdata: SpatialData) -> None:
    labels, table = sdata.labels["superres_labels"], sdata.tables["superres"]
    ids = np.asarray(labels)
    assert ids.dtype == np.int32
    assert (ids[table.obs["array_row"], table.obs["array_col"]] == table.obs["instance_id"]).all()
    assert (ids > 0).sum() == table.n_obs
    borders = ids[0], ids[-1], ids[:, 0], ids[:, -1]
    assert all(border.any() for border in borders), "cropped to the tissue"


def test_centroids_of_the_labels_are_the_coordinates_of_the_table(sdata: SpatialData) -> None:
    table = sdata.tables["superres"]
    centroids = sd.get_centroids(sdata.labels["superres_labels"], coordinate_system="global").compute()
    centroids = centroids[centroids.index != 0]
    np.testing.assert_allclose(centroids.loc[table.obs["instance_id"], ["x", "y"]], table.obsm["spatial"], atol=1e-3)


def test_written_and_read_again_it_is_the_same(sdata: SpatialData, tmp_path: Path) -> None:
    sdata.write(tmp_path / "all.zarr")
    again = read_zarr(tmp_path / "all.zarr")
    assert {*again.images, *again.labels, *again.tables, *again.shapes} == {
        *sdata.images, *sdata.labels, *sdata.tables, *sdata.shapes,
    }  # fmt: skip
    old, new = sdata.tables["superres"], again.tables["superres"]
    np.testing.assert_array_equal(new.X, old.X)
    np.testing.assert_array_equal(new.obsm["spatial"], old.obsm["spatial"])
    np.testing.assert_array_equal(again.labels["superres_labels"], sdata.labels["superres_labels"])
    assert new.uns["superres"]["params"].keys() == old.uns["superres"]["params"].keys()
    assert len(new.uns["superres"]["training"]["train_loss"]) == len(old.uns["superres"]["training"]["train_loss"])
    assert new.uns["superres"]["encoder"]["encoder"] == "colour_and_texture"


def test_a_bounding_box_holds_exactly_its_superpixels(sdata: SpatialData) -> None:
    low, high = np.array([20, 30]) * 16.0, np.array([60, 55]) * 16.0
    part = sd.bounding_box_query(
        sdata, axes=("x", "y"), min_coordinate=low, max_coordinate=high, target_coordinate_system="global"
    )
    table = sdata.tables["superres"]
    inside = ((table.obsm["spatial"] > low) & (table.obsm["spatial"] < high)).all(1)
    assert 500 < inside.sum() <= 40 * 25
    ids = np.unique(part.labels["superres_labels"])
    assert set(ids) - {0} == set(table.obs["instance_id"][inside])
    assert set(part.tables["superres"].obs_names) == set(table.obs_names[inside])
    assert "superpixel_features" in part.images


@pytest.mark.parametrize("corner", [(310, 205), (312, 201), (304, 216)])
def test_cells_inside_a_cut_have_the_counts_they_had_before(sdata: SpatialData, corner: tuple[int, int]) -> None:
    whole = SpatialData(images=dict(sdata.images), labels=dict(sdata.labels), tables=dict(sdata.tables))
    squares = [shapely.box(x, y, x + 21, y + 27) for x in (401, 513, 640) for y in (400, 455)]
    cells = GeoDataFrame(geometry=squares, index=[f"cell{i}" for i in range(len(squares))])
    whole.shapes["cells"] = ShapesModel.parse(cells, transformations={"global": Identity()})
    cut = sd.bounding_box_query(
        whole,
        axes=("x", "y"),
        min_coordinate=np.array(corner),
        max_coordinate=np.array(corner) + 500,
        target_coordinate_system="global",
    )
    counts = []
    for one in (whole, cut):
        sx.tl.aggregate_by(one, "cells")
        counts.append(one.tables["cells_superres"].to_df())
    assert counts[0].to_numpy().sum() > 0
    pd.testing.assert_frame_equal(counts[1], counts[0].loc[counts[1].index], rtol=1e-5)


def test_values_are_found_by_the_names_of_genes(sdata: SpatialData) -> None:
    table = sdata.tables["superres"]
    genes = list(table.var_names[[0, 5]])
    values = sd.get_values(genes, sdata=sdata, element_name="superres_labels", table_name="superres")
    np.testing.assert_allclose(values.loc[table.obs["instance_id"], genes], table[:, genes].X)


def test_labels_are_drawn_over_the_image_where_tissue_is(sdata: SpatialData) -> None:
    table = sdata.tables["superres"]
    gene = table.var_names[np.argmax(np.asarray(table.X).var(0))]
    pictures = []
    for layer in (False, True):
        plot = sdata.pl.render_images("image")
        if layer:
            plot = plot.pl.render_labels(
                "superres_labels", color=gene, table_name="superres", cmap="gray", fill_alpha=1.0
            )
        figure, axes = plt.subplots(figsize=(5, 5), dpi=100)
        plot.pl.show(coordinate_systems="global", ax=axes, colorbar=False)
        axes.set_position((0, 0, 1, 1))
        axes.set_xlim(0, sdata.images["image"].sizes["x"])
        axes.set_ylim(sdata.images["image"].sizes["y"], 0)
        axes.set_aspect("auto")
        axes.axis("off")
        axes.set_title("")
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float))  # type: ignore[attr-defined]
        plt.close(figure)
    changed = np.abs(pictures[1] - pictures[0]).max(-1)
    to_pixel = 500 / np.array([sdata.images["image"].sizes[axis] for axis in ("x", "y")])
    column, row = (table.obsm["spatial"] * to_pixel).astype(int).clip(0, 499).T
    assert (changed[row, column] > 10).mean() > 0.95, "tissue is coloured"
    outside = np.argwhere(np.asarray(sdata.labels["tissue"]) == 0)
    column_out, row_out = ((outside[:, ::-1] + 0.5) * 16 * to_pixel).astype(int).clip(0, 499).T
    assert (changed[row_out, column_out] < 1).mean() > 0.9, "the slide around it is not"
    value = np.asarray(table[:, gene].X).ravel()
    assert np.corrcoef(pictures[1][row, column].mean(-1), value)[0, 1] > 0.9, "and by its values"
