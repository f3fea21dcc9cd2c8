"""A section whose "result" is known: its own truth, cropped to the tissue as results are."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from sphistex import datasets, tl


@pytest.fixture(scope="session")
def simulated() -> SpatialData:
    return datasets.simulate(size_um=(600, 800), n_genes=6, seed=1)


@pytest.fixture(scope="session")
def lazy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a lazy result of a real fit."""
    store = tmp_path_factory.mktemp("lazy") / "section.zarr"
    section = datasets.simulate(size_um=700, n_genes=20)
    section.write(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tl.super_resolve(section, encoder="efficientnet_lite0", epochs=2, n_models=1, lazy=True)
    return store


@pytest.fixture
def sdata(simulated: SpatialData) -> SpatialData:
    """A fresh object around the same elements."""
    section = SpatialData.init_from_elements({name: element for _, name, element in simulated.gen_elements()})
    truth = simulated.tables["truth"]
    first = truth.obs[["array_row", "array_col"]].min().to_numpy()
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["truth_labels"] * truth.n_obs),
            "instance_id": truth.obs["instance_id"].to_numpy(),
            "array_row": truth.obs["array_row"].to_numpy() - first[0],
            "array_col": truth.obs["array_col"].to_numpy() - first[1],
        },
        index=[f"superres_{i}" for i in range(truth.n_obs)],
    )
    result = AnnData(np.asarray(truth.layers["expected"]).copy(), obs=obs, var=truth.var.copy())
    result.obsm["spatial"] = np.asarray(truth.obsm["spatial"])
    result.uns["superres"] = {
        "section": {
            "image_key": "image",
            "shapes_key": "spots",
            "table_key": "counts",
            "coordinate_system": "global",
        },
        "mpp": 0.5,
        "pitch_um": 8.0,
        "crop": first.tolist(),
        "training": {
            "train_loss": np.array([3.0, 2.0, 1.5, 1.2]),
            "validation_loss": np.array([3.1, 2.4, 2.2, 2.5]),
            "best_epoch": np.array([2, 1, 2]),
        },
    }
    section.tables["superres"] = TableModel.parse(
        result, region="truth_labels", region_key="region", instance_key="instance_id"
    )
    return section
