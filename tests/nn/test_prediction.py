"""Maps in parts: features embedded before their surroundings are averaged, and genes some at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sphistex.bags import Bags
from sphistex.grid import Grid
from sphistex.nn import FeatureMap, Spots, SuperResolver, parameters
from sphistex.nn.genes import GeneReader
from sphistex.nn.prediction import Mapper

ROWS, COLUMNS, DIM, GENES = 50, 44, 6, 5


@pytest.fixture(scope="module")
def section() -> tuple[FeatureMap, Bags, Spots]:
    """Features far from zero, with large numbers outside the tissue, and spots of random counts."""
    rng = np.random.default_rng(0)
    mask = np.ones((ROWS, COLUMNS), dtype=bool)
    mask[:10, :12], mask[33:36, 20:] = False, False
    features = (rng.normal(size=(DIM, ROWS, COLUMNS)) * 0.2 + 7).astype(np.float16)
    features[:, ~mask] = 1e3
    xy_um: NDArray = np.stack(np.meshgrid(np.arange(3), np.arange(3)), -1).reshape(-1, 2) * 100.0 + 70
    bags = Bags.from_disks(Grid((ROWS, COLUMNS), mpp=0.5), xy_um / 0.5, 55.0).within(mask)
    spots = Spots(xy_um, np.full(len(xy_um), 27.5), 100.0, rng.poisson(5, (len(xy_um), GENES)).astype(np.float32))
    return FeatureMap(features, mask, (0, 1, 4), block=32), bags, spots


@pytest.fixture(scope="module")
def model(section: tuple[FeatureMap, Bags, Spots]) -> SuperResolver:
    chosen = parameters(context=(0, 1, 4), epochs=2, n_models=2, d=16, heads=2, embed=16, hidden=(8,), holdout=0.0)
    fitted = SuperResolver.fit(*section, [f"g{i}" for i in range(GENES)], chosen)
    fitted.image_share = np.linspace(0, 1, GENES)
    return fitted


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_surroundings_may_be_averaged_after_they_are_embedded(section, model, precision) -> None:
    features, bags, spots = section
    exact = SuperResolver(
        **{**vars(model), "parameters": parameters(**{**model.parameters.to_json(), "precision": precision})}
    )
    mapper = Mapper.of(exact, features, bags, spots, seed=0)
    window = slice(5, 40), slice(3, 44)
    vectors = torch.from_numpy(features.read(*window).reshape(-1, features.dim))
    expected = exact.module.network.embed(exact._by_context(vectors).float()[:, None])
    found = mapper._embed(window).float()
    inside = features.mask[window].ravel()
    atol = 1e-4 if precision == "float32" else 0.05
    torch.testing.assert_close(found[:, inside], expected[:, inside], atol=atol, rtol=0.02)


def test_genes_one_at_a_time_are_the_same_map(section, model) -> None:
    features, bags, spots = section
    mapper = Mapper.of(model, features, bags, spots, seed=0)
    for window in features.blocks():
        latent = mapper.latent(window)
        together = mapper.counts(window, latent, slice(None))
        alone: list[NDArray] = [mapper.counts(window, latent, slice(g, g + 1)) for g in range(GENES)]
        np.testing.assert_allclose(np.hstack(alone), together, rtol=1e-4, atol=1e-6)
        assert together.shape == (features.mask[window].sum(), GENES)


def test_without_memory_for_all_windows_at_once_the_map_is_the_same(section, model, monkeypatch) -> None:
    features, bags, spots = section
    expected = model.predict_tissue(features, bags, spots)
    network, sizes = model.module.network, list[int]()
    attend = network.attend

    def small(spots: torch.Tensor, superpixels: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        if superpixels.shape[1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(superpixels.shape[1])
        return attend(spots, superpixels, *masks)

    monkeypatch.setattr(network, "attend", small)
    with pytest.warns(UserWarning, match="no memory on cpu.*halved") as warned:
        found = model.predict_tissue(features, bags, spots)
    assert len(warned) == 1
    assert 10 < max(sizes) <= 20
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_some_genes_read_from_stored_arrays_are_the_same_map(section, model) -> None:
    """What a lazy result keeps is all that it takes."""
    features, bags, spots = section
    mapper = Mapper.of(model, features, bags, spots, seed=0)
    assert mapper.reader.correction is not None
    assert mapper.reader.interpolation is not None
    stored = GeneReader.from_arrays(mapper.reader.to_arrays()).take(np.array([3, 1]))
    for window in features.blocks():
        latent = mapper.latent(window)
        found = stored.counts(window, features.mask[window], latent)
        np.testing.assert_allclose(found, mapper.counts(window, latent, slice(None))[:, [3, 1]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_reader_knows_its_objective_and_average(section, preset) -> None:
    features, bags, spots = section
    quick = {"epochs": 1, "n_models": 3, "d": 16, "heads": 2, "hidden": (8,)}
    fitted = SuperResolver.fit(
        FeatureMap(features.features, features.mask, parameters(preset).context),
        bags,
        spots,
        [f"g{i}" for i in range(GENES)],
        parameters(preset, **quick),
    )
    reader = GeneReader.of(fitted, None, None)
    latent = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 12, 8)).astype(np.float32))
    window, inside = (slice(0, 3), slice(0, 4)), np.ones((3, 4), dtype=bool)
    whole = reader.counts(window, inside, latent)
    stored = GeneReader.from_arrays(reader.to_arrays()).take(np.array([4, 0]))
    np.testing.assert_allclose(stored.counts(window, inside, latent), whole[:, [4, 0]], rtol=1e-5)
