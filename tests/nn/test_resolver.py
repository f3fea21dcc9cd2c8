"""The whole model on plain arrays: what it learns, that it repeats itself, and that its maps have no seams."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import griddata
from scipy.ndimage import gaussian_filter

from sphistex.bags import Bags
from sphistex.grid import Grid
from sphistex.nn import PRESETS, FeatureMap, FitParameters, Inputs, Spots, SuperResolver, parameters
from sphistex.nn.resolver import _halves
from sphistex.nn.training import folds, suitable_batch

SIDE, N_GENES = 80, 5
GENES = [f"g{i}" for i in range(N_GENES)]
QUICK: dict[str, Any] = {
    "n_models": 2,
    "epochs": 30,
    "patience": 10,
    "hidden": (32,),
    "context": (0, 2),
    "learning_rate": 3e-3,
}


class Section:
    """A section whose rates are a function of its features, times a smooth factor that the features do not show."""

    def __init__(self, smoothness: float = 1.5, side: int = SIDE, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.grid = Grid((side, side), mpp=0.5)
        self.mask = np.ones((side, side), dtype=bool)
        self.mask[: side // 9, : side // 6] = False
        noise = rng.normal(size=(4, side, side))
        features = np.stack([gaussian_filter(plane, smoothness) for plane in noise])
        self.array = (features / features.std((1, 2), keepdims=True)).astype(np.float32) * self.mask
        hidden = gaussian_filter(rng.normal(size=(side, side)), 20)
        effect = 0.5 * rng.normal(size=(4, N_GENES))
        log_rate = np.einsum("crk,cg->rkg", self.array, effect) + 0.6 * (hidden / hidden.std())[..., None]
        self.rates = 2.0 * np.exp(log_rate) * self.mask[..., None]
        self.bags, self.spots = self._measure(rng)

    def _measure(self, rng: np.random.Generator) -> tuple[Bags, Spots]:
        row, column = np.indices((20, 20)).reshape(2, -1)
        xy_um = 35 + 100 * np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])
        xy_um = xy_um[(xy_um < self.grid.shape[0] * 8 - 30).all(1)]
        bags = Bags.from_disks(self.grid, xy_um / 0.5, 27.5 / 0.5).within(self.mask)
        kept = np.asarray(bags.weights.sum(1)).ravel() > 20
        bags, xy_um = bags.take(kept), xy_um[kept]
        counts = rng.poisson(bags.weights @ self.rates.reshape(-1, N_GENES)).astype(np.float32)
        return bags, Spots(xy_um, np.full(len(xy_um), 27.5), 100.0, counts)

    def features(self, context: tuple[int, ...] = (0, 2), block: int = 64) -> FeatureMap:
        return FeatureMap(self.array, self.mask, context, block)

    def fit(self, chosen: FitParameters, seed: int = 0, device: str = "cpu") -> SuperResolver:
        features = self.features(chosen.context)
        return SuperResolver.fit(features, self.bags, self.spots, GENES, chosen, seed=seed, device=device)

    def map_of(self, model: SuperResolver, block: int = 64) -> NDArray[np.float32]:
        features = self.features(model.parameters.context, block)
        out = np.full((*self.grid.shape, N_GENES), np.nan, dtype=np.float32)
        for window, rates in model.predict(features, self.bags, self.spots):
            out[window] = rates
        return np.where(self.mask[..., None], out, 0.0)

    def correlation(self, found: NDArray) -> float:
        pairs = zip(found[self.mask].T, self.rates[self.mask].T, strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))

    def interpolated(self) -> NDArray:
        """Linear interpolation of the spots, the nearest one outside them."""
        row, column = np.indices(self.grid.shape)
        centres = np.stack([column + 0.5, row + 0.5], -1) * 8.0
        linear, nearest = (
            griddata(self.spots.xy_um, self.spots.counts, centres, kind) for kind in ("linear", "nearest")
        )
        return np.where(np.isnan(linear), nearest, linear)


@pytest.fixture(scope="module")
def section() -> Section:
    return Section()


@pytest.fixture(scope="module")
def plain(section: Section) -> SuperResolver:
    return section.fit(parameters(layers=0, **QUICK))


@pytest.fixture(scope="module")
def attentive(section: Section) -> SuperResolver:
    """A model whose superpixels attend to the spots around them."""
    return section.fit(parameters(layers=1, d=16, heads=2, **QUICK))


@pytest.fixture(params=["plain", "attentive"])
def model(request: pytest.FixtureRequest) -> SuperResolver:
    return request.getfixturevalue(request.param)


def test_maps_are_better_than_interpolation(section: Section, model: SuperResolver) -> None:
    found = section.map_of(model)
    assert section.correlation(found) > section.correlation(section.interpolated()) + 0.15


def test_maps_are_counts_on_tissue_and_nothing_elsewhere(section: Section, model: SuperResolver) -> None:
    found = section.map_of(model)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    blocks = list(model.predict(section.features(), section.bags, section.spots))
    assert all(not rates[~section.mask[window]].any() for window, rates in blocks)
    total = (section.bags.weights @ found.reshape(-1, N_GENES)).sum(0)
    np.testing.assert_allclose(total, section.spots.counts.sum(0), rtol=0.1)


def test_residuals_add_what_the_image_does_not_show(section: Section, plain: SuperResolver) -> None:
    without = replace(plain, parameters=replace(plain.parameters, residuals=False))
    assert section.correlation(section.map_of(plain)) > section.correlation(section.map_of(without)) + 0.02


def test_halves_of_counts_are_independent_and_whole_together() -> None:
    counts = np.random.default_rng(0).poisson(8, (20_000, 2)).astype(np.float32)
    counts[:, 1] += 0.25  # counts that look normalised are allowed
    first, second = _halves(counts, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(first + second, 2 * counts, rtol=1e-6)
    assert min(first.min(), second.min()) >= 0
    np.testing.assert_allclose(first.mean(0), counts.mean(0), rtol=0.02)
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.03


def test_neighbours_add_what_the_image_does_not_show() -> None:
    larger = Section(side=160)  # some 180 spots

    def accuracy(**changes: Any) -> float:
        return larger.correlation(
            larger.map_of(larger.fit(parameters(d=16, heads=2, residuals=False, **QUICK, **changes)))
        )

    found = accuracy(layers=1)
    assert found > accuracy(layers=0) + 0.05
    assert found > accuracy(layers=1, residual=False) + 0.01, "as published, their expression never reaches the output"


@pytest.mark.parametrize("block", [16, 32])
def test_maps_do_not_depend_on_the_blocks(section: Section, model: SuperResolver, block: int) -> None:
    # in bfloat16 the last bit of a sum over surroundings can turn one of a feature's few digits
    model = replace(model, parameters=replace(model.parameters, precision="float32"))
    np.testing.assert_allclose(section.map_of(model, block), section.map_of(model, 64), atol=1e-4, rtol=1e-4)


def test_no_window_border_shows() -> None:
    """Neighbours that are nearest to different windows differ as little as any others, on smooth features."""
    section = Section(smoothness=4.0)
    model = section.fit(parameters(layers=1, d=16, heads=2, residuals=False, **QUICK))
    found = section.map_of(model, block=16)
    for axis in (0, 1):
        step = np.abs(np.diff(found, axis=axis)).mean(-1)
        both = section.mask & np.roll(section.mask, -1, axis)
        step, both = (np.moveaxis(x, axis, 0) for x in (step, both))
        difference = np.array([step[i][both[i]].mean() for i in range(SIDE - 1)])
        border = np.arange(SIDE - 1) % 3 == 1  # window centres are the multiples of 3
        assert difference[border].mean() <= 1.05 * difference[~border].mean()


def test_attention_uses_the_spots(section: Section, attentive: SuperResolver) -> None:
    """What lies around changes the map, and only around."""
    model = replace(attentive, parameters=replace(attentive.parameters, residuals=False))
    before = section.map_of(model)
    counts = section.spots.counts.copy()
    changed = int(np.argmin(np.linalg.norm(section.spots.xy_um - 200, axis=1)))
    counts[changed] = counts[changed][::-1] * 5
    other = Section()
    other.spots = replace(section.spots, counts=counts)
    # without being rescaled as another section would be
    model = replace(model, sections=[Inputs(other.features(), other.bags, other.spots).identity])
    difference = np.abs(other.map_of(model) - before).max(-1)
    row, column = np.indices(section.grid.shape)
    distance = np.hypot(
        (column + 0.5) * 8 - section.spots.xy_um[changed, 0], (row + 0.5) * 8 - section.spots.xy_um[changed, 1]
    )
    assert difference[(distance < 100) & section.mask].max() > 1e-4
    assert difference[distance > 350].max() < 1e-6


def test_same_seed_same_map_other_seed_other_map(section: Section) -> None:
    quick = parameters(layers=1, d=8, heads=2, **(QUICK | {"epochs": 2}))
    one, two, other = (section.map_of(section.fit(quick, seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.gpu
def test_on_a_gpu_the_same_seed_gives_the_same_map_and_a_cpu_reads_it(section: Section, tmp_path: Path) -> None:
    quick = parameters(d=16, heads=2, **QUICK)
    one, two = (section.fit(quick, device="cuda") for _ in range(2))
    found = section.map_of(one)
    np.testing.assert_array_equal(found, section.map_of(two))
    one.save(tmp_path)
    np.testing.assert_allclose(section.map_of(SuperResolver.load(tmp_path)), found, rtol=0.01, atol=0.01)


def test_fitting_leaves_the_global_random_state_alone(section: Section) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    section.fit(parameters(layers=0, **(QUICK | {"epochs": 1})))
    assert torch.equal(torch.rand(3), expected)


def test_log_of_the_fit_is_kept(plain: SuperResolver) -> None:
    info = plain.info
    assert len(info["train_loss"]) == len(info["validation_loss"]) <= 30
    assert info["train_loss"][-1] < info["train_loss"][0]
    assert len(info["best_epoch"]) == 2
    assert {"torch", "numpy", "python", "sphistex"} <= set(info["versions"])


def test_saved_and_loaded_it_predicts_the_same(section: Section, model: SuperResolver, tmp_path: Path) -> None:
    model.encoder = {"encoder": "test", "dim": 4}
    model.save(tmp_path / "model")
    again = SuperResolver.load(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    assert (again.genes, again.parameters, again.encoder) == (model.genes, model.parameters, model.encoder)
    np.testing.assert_allclose(section.map_of(again), section.map_of(model), rtol=1e-6)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no saved SuperResolver"):
        SuperResolver.load(tmp_path)


# ------------------------------------------------------------------------------------------------ presets


def test_the_paper_preset_has_the_papers_numbers() -> None:
    paper = PRESETS["paper"]
    assert (paper.d, paper.neighbours, paper.layers) == (512, 6, 2)
    assert (paper.epochs, paper.learning_rate, paper.n_models) == (500, 1e-4, 5)
    assert (paper.objective, paper.average, paper.spots) == ("squares", "median", "enhanced")
    assert paper.enhanced_bags, "measured and enhanced spots are bags"
    assert (paper.thinned, paper.own_dropout, paper.residual) == (False, 0, False), "the published behaviour"
    assert not paper.residuals


def test_the_paper_preset_runs() -> None:
    section = Section(side=30)
    model = section.fit(parameters("paper", epochs=1))
    section.mask[8:], section.mask[:, :22] = False, False  # a corner is enough
    found = section.map_of(model)
    assert np.isfinite(found).all()
    assert found[section.mask].min() >= 0


def test_a_small_model_of_the_papers_kind_learns_and_is_saved(tmp_path: Path) -> None:
    section = Section(side=60)
    model = section.fit(parameters("paper", epochs=15, d=16, heads=2, hidden=(32,), n_models=3, learning_rate=3e-3))
    found = section.map_of(model)
    assert section.correlation(found) > 0.3
    model.save(tmp_path)
    np.testing.assert_allclose(section.map_of(SuperResolver.load(tmp_path)), found, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "papers"}, "preset='papers'.*'default', 'paper'"),
        ({"epoch": 5}, "unknown fit parameters .'epoch'.*'epochs'"),
        ({"epochs": 0}, "epochs=0"),
        ({"n_models": -1}, "n_models=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"holdout": -0.1}, "holdout=-0.1"),
        ({"objective": "absolute"}, "objective='absolute'.*'poisson', 'squares'"),
        ({"average": "mode"}, "average='mode'.*'mean', 'median'"),
        ({"spots": "all"}, "spots='all'.*'measured', 'enhanced'"),
        ({"profile": "raw"}, "profile='raw'.*'components', 'scaled'"),
        ({"layers": -1}, "layers=-1"),
        ({"layers": 1, "d": 50, "heads": 8}, "d=50.*heads=8"),
        ({"patience": 0}, "patience=0"),
        ({"context": (0, -2)}, "context=.*-2"),
        ({"context": ()}, r"context=\(\)"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_at_once(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters(**changes)


@pytest.mark.parametrize("name", ["epochs", "dropout", "batch_size"])
def test_parameters_of_another_type_are_refused_at_once(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}='5'"):
        parameters(**{name: "5"})


def test_none_switches_off_what_can_be_switched_off() -> None:
    chosen = parameters(patience=None, embed=None)
    assert chosen.patience is None
    assert chosen.embed is None
    with pytest.raises(TypeError, match="epochs=None"):
        parameters(epochs=None)


def test_parameters_survive_json() -> None:
    for preset in PRESETS.values():
        assert FitParameters.from_json(preset.to_json()) == preset
        assert not any(isinstance(value, tuple) for value in preset.to_json().values())


def test_an_image_that_shows_nothing_is_not_read() -> None:
    """Where features are noise the map is mostly interpolation; where they are not, it is the network's."""
    chosen = parameters(layers=0, **QUICK | {"n_models": 5})
    section = Section(side=130)
    shown = section.fit(chosen).image_share.mean()
    section.array = np.random.default_rng(0).permuted(section.array, axis=2)
    model = section.fit(chosen)
    assert shown > 0.7
    assert model.image_share.mean() < 0.7 * shown
    assert section.correlation(section.map_of(model)) > section.correlation(section.interpolated()) - 0.01


@pytest.mark.parametrize("n_spots", [100, 350, 1000, 4000])
def test_an_epoch_takes_enough_steps_whatever_the_number_of_spots(n_spots: int) -> None:
    held_out = folds(n_spots, 3, share=0.2)
    batch = suitable_batch(torch.ones(n_spots, 49), held_out)
    n_seen = int((~held_out).sum(1).min())
    assert 16 <= batch <= 64
    assert -(-n_seen // batch) >= 16 or batch * 49 <= 1000


def test_bags_of_single_bins_make_large_batches() -> None:
    assert suitable_batch(torch.ones(10_000, 1), torch.zeros(1, 10_000, dtype=torch.bool)) == 1000
