"""Gene sets are tested alike in spots, in superpixels and in the null, and only what is new counts as found after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import sphistex as sx

pytest.importorskip("decoupler")


def colours(tiles: np.ndarray) -> np.ndarray:
    """Mean and spread of the colours of every patch: quick, and enough to tell compartments apart."""
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // 16, 16, width // 16, 16, 3).astype(np.float32)
    return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], axis=-1)


@pytest.fixture(scope="module")
def sdata(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpatialData]:
    before = sx.settings.cache_dir, sx.settings.progress
    sx.settings.cache_dir, sx.settings.progress = tmp_path_factory.mktemp("cache"), False
    sdata = sx.datasets.simulate(size_um=900, n_genes=40, seed=1)
    sx.tl.super_resolve(sdata, encoder=colours, n_models=1, epochs=20, device="cpu", seed=3)
    table = sdata.tables["superres"]
    side = np.where(np.asarray(table.obsm["spatial"])[:, 0] < 900, "left", "right")
    table.obs["side"] = pd.Categorical(side)
    # the left half expresses the first ten genes, of which the spots know nothing
    values = np.asarray(table.X).copy()
    values[np.ix_(side == "left", np.arange(10))] *= 20
    table.X = values
    yield sdata
    sx.settings.cache_dir, sx.settings.progress = before


@pytest.fixture(scope="module")
def sets(sdata: SpatialData) -> dict[str, list[str]]:
    genes = list(sdata.tables["superres"].var_names)
    return {"planted": genes[:10], "other": genes[20:30]}


@pytest.fixture(scope="module")
def compared(sdata: SpatialData, sets: dict[str, list[str]]) -> pd.DataFrame:
    return sx.tl.compare_enrichment(sdata, gene_sets=sets, groupby="side", n_markers=12)


def test_what_superpixels_alone_show_is_found_only_after(compared):
    planted = compared[(compared["group"] == "left") & (compared["gene_set"] == "planted")].iloc[0]
    assert planted["q_after"] < 1e-3 and planted["q_before"] > 0.05 and planted["q_null"] > 0.05
    assert planted["only_after"] and planted["n_after"] >= 7
    assert compared["only_after"].sum() == 1 and compared["only_after"].iloc[0], "what is found stands first"


def test_spots_are_tested_as_enrich_tests_them(sdata, sets, compared):
    spots = sdata.tables["counts"].copy()[:, list(sdata.tables["superres"].var_names)].copy()
    spots.obs["side"] = np.where(np.asarray(spots.obsm["spatial"])[:, 0] < 900, "left", "right")
    alone = SpatialData(tables={"counts": spots})
    sx.tl.enrich(alone, table_key="counts", gene_sets=sets, groupby="side", n_markers=12)
    expected = alone.tables["counts"].uns["enrichment"]["over_representation"].astype({"group": str})
    own = compared.astype({"group": str}).merge(expected, on=["group", "gene_set"])
    assert len(own) == 4
    np.testing.assert_allclose(own["q_before"], own["q"])
    np.testing.assert_array_equal(own["n_before"], own["n_overlap"])


def test_without_a_null_and_without_spots_of_a_region(sdata, sets):
    table = sdata.tables["superres"]
    table.obs["corner"] = pd.Categorical(np.where(np.arange(table.n_obs) < 6, "few", "rest"))
    found = sx.tl.compare_enrichment(sdata, gene_sets=sets, groupby="corner", null=False)
    assert found["q_null"].isna().all() and found["q_before"].isna().all() and found["q_after"].notna().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table_key": "nowhere"}, KeyError, "table_key='nowhere'"),
        ({"table_key": "counts"}, ValueError, "not a result of sphistex.tl.super_resolve"),
        ({"groupby": "nothing"}, KeyError, "groupby='nothing'.*'side'"),
        ({"gene_sets": {"a": ["TP53"]}}, ValueError, "0 of the 1 genes"),
        ({"max_q": 0}, ValueError, "max_q=0"),
    ],
)
def test_mistakes_are_named(sdata, sets, arguments, error, message):
    with pytest.raises(error, match=message):
        sx.tl.compare_enrichment(sdata, **({"gene_sets": sets, "groupby": "side"} | arguments))


def test_activity_is_drawn_where_it_is(sdata, sets):
    sx.tl.enrich(sdata, table_key="superres", gene_sets=sets)
    figure: Any = sx.pl.activity(sdata, "planted", table_key="superres", return_fig=True)
    drawn = np.ma.filled(figure.axes[1].images[-1].get_array().astype(float), np.nan)
    middle = drawn.shape[1] // 2
    assert np.nanmean(drawn[:, : middle - 2]) > np.nanmean(drawn[:, middle + 2 :]) + 1
    with pytest.raises(KeyError, match="'elsewhere'.*were not scored.*'other'"):
        sx.pl.activity(sdata, ["elsewhere"], table_key="superres")
