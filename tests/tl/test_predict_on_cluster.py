"""Maps predicted by two worker processes are those predicted here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster
from spatialdata import SpatialData, read_zarr

import sphistex as sx


def colour(tiles: np.ndarray) -> np.ndarray:
    n, height, width, _ = tiles.shape
    return tiles.reshape(n, height // 16, 16, width // 16, 16, 3).mean((2, 4)) / 255


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = sx.settings.cache_dir, sx.settings.progress, sx.settings.memory_gb
    sx.settings.cache_dir, sx.settings.progress = tmp_path / "cache", False
    sx.settings.memory_gb = 0.5  # blocks of 32 superpixels, of which there are several
    yield
    sx.settings.cache_dir, sx.settings.progress, sx.settings.memory_gb = before


def test_workers_predict_the_same_map(tmp_path: Path) -> None:
    sx.datasets.simulate(size_um=700, n_genes=8).write(tmp_path / "section.zarr")
    sdata: SpatialData = read_zarr(tmp_path / "section.zarr")
    sx.tl.superpixel_features(sdata, encoder=colour)
    model = sx.tl.fit(sdata, epochs=1, n_models=2, hidden=(16,), d=16, precision="float32", device="cpu")
    sx.tl.predict(sdata, model, key_added="here")
    sx.tl.predict(sdata, model, key_added="here_lazy", lazy=True)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        sx.tl.predict(sdata, model, key_added="there")
        sx.tl.predict(sdata, model, key_added="there_lazy", lazy=True)
        busy = client.run(lambda dask_worker: dask_worker.state.transition_counter)
        assert all(busy.values())
    found, expected = sdata.tables["there"], sdata.tables["here"]
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-5, atol=1e-7)
    here, there = (np.asarray(sdata.images[f"{name}_lazy_latent"]) for name in ("here", "there"))
    assert np.abs(there).max() > 0
    np.testing.assert_allclose(there, here, rtol=2e-3, atol=1e-4)  # a last bit of float16
