"""Training finds a planted relation, and what is held out stays out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import PoissonCounts
from sphistex.nn.training import BagData, TrainingLog, folds, initialise_at_mean, train

N_BAGS, N_SUPERPIXELS, N_FEATURES, N_GENES, N_MODELS = 150, 20, 4, 6, 2
State = dict[str, torch.Tensor]


def planted(seed: int = 0) -> tuple[BagData, torch.Tensor]:
    """Bags with Poisson counts of the sum of their superpixels' rates, exp(linear in features); and the rates."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(N_BAGS * N_SUPERPIXELS, N_FEATURES, generator=generator)
    effect = 0.6 * torch.randn(N_FEATURES, N_GENES, generator=generator)
    rates = torch.exp(features @ effect)
    index = torch.arange(len(features)).reshape(N_BAGS, N_SUPERPIXELS)
    counts = torch.poisson(rates[index].sum(1), generator=generator)
    data = BagData(
        features=features[None],
        index=index,
        weight=torch.ones(N_BAGS, N_SUPERPIXELS),
        counts=counts,
        spots=torch.randn(N_BAGS, 3, 5, generator=generator),
        spot_mask=torch.ones(N_BAGS, 3, dtype=torch.bool),
    )
    return data, rates


def network(layers: int = 0, dropout: float = 0.0) -> HISTEX:
    torch.manual_seed(7)
    made = HISTEX(
        N_MODELS, N_FEATURES, 5, N_GENES, d=8, heads=2, layers=layers, hidden=(32,), activation=torch.nn.GELU,
        dropout=dropout,
    )  # fmt: skip
    initialise_at_mean(made)
    return made


def fitted(data: BagData, held_out: torch.Tensor, **changes: Any) -> tuple[HISTEX, TrainingLog, list[State]]:
    """A trained network, its log, and its weights after every epoch."""
    model, states = network(changes.pop("layers", 0), changes.pop("dropout", 0.0)), list[State]()
    # the scale of the genes is given, so that only training itself can let held-out counts through
    objective = PoissonCounts(torch.full((2, N_GENES), 20.0), torch.full((2,), float(N_SUPERPIXELS)))
    arguments = {"epochs": 6, "patience": None, "batch_size": 25, "learning_rate": 1e-2} | changes

    def keep(*_: Any) -> None:
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    log = train(model, objective, data, held_out, on_epoch=keep, **arguments)
    return model, log, states


def rates_of(model: HISTEX, data: BagData) -> torch.Tensor:
    objective = PoissonCounts(torch.full((2, N_GENES), 20.0), torch.full((2,), float(N_SUPERPIXELS)))
    with torch.no_grad():
        return objective.rate(model.loadings(data.latent(model, torch.arange(len(data))))).flatten(1, 2)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.mean([np.corrcoef(a[:, g], b[:, g])[0, 1] for g in range(a.shape[1])]))


def same(a: State, b: State) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layers", [0, 1])
def test_rates_of_superpixels_are_learnt_from_the_sums_of_bags(layers: int) -> None:
    data, truth = planted()
    model, log, _ = fitted(data, folds(N_BAGS, N_MODELS), epochs=48, layers=layers)
    found = rates_of(model, data).mean(0)
    spread = (data.counts / N_SUPERPIXELS)[:, None].expand(-1, N_SUPERPIXELS, -1).flatten(0, 1)
    assert correlation(found, truth) > (0.6 if layers else 0.8)
    assert correlation(found, truth) > 2 * correlation(spread, truth), "better than the bag's mean, everywhere"
    assert min(log.validation) < log.validation[0]


def test_all_genes_are_learnt_where_a_step_looks_at_some() -> None:
    data, truth = planted()
    model, _, _ = fitted(data, folds(N_BAGS, N_MODELS), epochs=80, genes_per_step=2)
    found = rates_of(model, data).mean(0)
    assert min(correlation(found[:, [g]], truth[:, [g]]) for g in range(N_GENES)) > 0.6


def test_counts_that_are_held_out_never_reach_the_weights() -> None:
    data, _ = planted()
    held_out = torch.zeros(N_MODELS, N_BAGS, dtype=torch.bool)
    held_out[0, :40] = True
    other, _ = planted()
    other.counts[:40] = torch.randint(0, 100, (40, N_GENES)).float()
    (_, _, before), (_, _, after) = fitted(data, held_out, dropout=0.2), fitted(other, held_out, dropout=0.2)
    for name in before[-1]:
        for one, two in zip(before, after, strict=True):
            assert torch.equal(one[name][0], two[name][0]), "the model that does not see them"
        if "weight" in name:
            assert not torch.equal(before[-1][name][1], after[-1][name][1]), "the model that does"


def test_every_model_ends_with_the_weights_of_its_own_best_epoch() -> None:
    data, _ = planted()
    data.counts = data.counts[torch.randperm(N_BAGS)]  # nothing to learn: overfitting sets in at once
    held_out = folds(N_BAGS, N_MODELS, share=0.5)
    model, log, states = fitted(data, held_out, epochs=15, schedule=False, learning_rate=3e-2)
    final = model.state_dict()
    assert min(log.best_epoch) < 14
    for number, epoch in enumerate(log.best_epoch):
        for name in final:
            assert torch.equal(final[name][number], states[epoch][name][number])


def test_the_best_epoch_is_that_of_the_least_held_out_loss() -> None:
    data, _ = planted()
    held_out = folds(N_BAGS, N_MODELS)
    held_out[1] = held_out[0]
    _, log, _ = fitted(data, held_out, epochs=12, schedule=False, learning_rate=3e-2)
    assert len(log.train) == len(log.validation) == 12
    if log.best_epoch[0] == log.best_epoch[1]:
        assert log.best_epoch[0] == int(np.argmin(log.validation))


def test_training_stops_when_nothing_improves_any_more() -> None:
    data, _ = planted()
    data.counts = data.counts[torch.randperm(N_BAGS)]
    _, log, _ = fitted(data, folds(N_BAGS, N_MODELS), epochs=60, patience=3, schedule=False, learning_rate=3e-2)
    assert len(log.train) < 60
    assert len(log.train) - 1 - max(log.best_epoch) == 3


def test_without_held_out_bags_the_last_epoch_counts() -> None:
    data, _ = planted()
    nobody = torch.zeros(N_MODELS, N_BAGS, dtype=torch.bool)
    model, log, states = fitted(data, nobody, epochs=4, patience=2)
    assert same(model.state_dict(), states[-1])
    assert log.best_epoch == [3, 3]
    assert np.isnan(log.validation).all()


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    data, _ = planted()
    held_out = folds(N_BAGS, N_MODELS)

    def run(seed: int) -> State:
        return fitted(data, held_out, epochs=2, dropout=0.3, seed=seed)[0].state_dict()

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_models_of_an_ensemble_do_not_touch_each_other() -> None:
    """A model trained beside a diverging one is the model it would be anyway."""
    data, _ = planted()
    nobody = torch.zeros(N_MODELS, N_BAGS, dtype=torch.bool)
    only_first = nobody.clone()
    only_first[1] = True  # the second model sees nothing at all
    (_, _, both), (_, _, one) = fitted(data, nobody), fitted(data, only_first)
    for name in both[-1]:
        torch.testing.assert_close(both[-1][name][0], one[-1][name][0])


@pytest.mark.parametrize(("n_models", "share"), [(1, 0.2), (3, 0.2), (5, 0.2), (8, 0.2), (2, 0.5)])
def test_every_model_holds_out_other_bags(n_models: int, share: float) -> None:
    held_out = folds(100, n_models, share=share, seed=3)
    assert held_out.shape == (n_models, 100)
    assert held_out.sum(0).max() == 1, "no bag is held out by two"
    parts = max(n_models, round(1 / share))
    assert (abs(held_out.sum(1) - 100 / parts) < 1).all()
    if n_models >= parts:
        assert held_out.any(0).all(), "every bag is unseen by one of them"
    assert torch.equal(held_out, folds(100, n_models, share=share, seed=3))
    assert not torch.equal(held_out, folds(100, n_models, share=share, seed=4))


def test_what_is_drawn_is_trained_on_and_drawn_anew_every_epoch() -> None:
    data, rates = planted()
    drawn: list[torch.Tensor] = []

    def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        drawn.append(torch.poisson(rates.reshape(N_BAGS, N_SUPERPIXELS, -1).sum(1)))
        return drawn[-1], data.spots, data.spot_mask

    nothing = torch.zeros_like(data.counts)  # what is kept explains nothing, what is drawn does
    made = replace(data, counts=nothing, draw=draw)
    model, log, _ = fitted(made, folds(N_BAGS, N_MODELS), epochs=40)
    assert len(drawn) == len(log.train) + 1 == 41, "one for each epoch, and one to compare them by"
    assert not torch.equal(drawn[1], drawn[2])
    assert correlation(rates_of(model, data).mean(0), rates) > 0.8


def test_progress_is_told_every_epoch() -> None:
    data, _ = planted()
    told: list[tuple[int, float, float]] = []
    report: Callable[[int, float, float], None] = lambda *values: told.append(values)
    objective = PoissonCounts(data.counts, data.weight.sum(1))
    log = train(
        network(), objective, data, folds(N_BAGS, N_MODELS), epochs=3, patience=None, batch_size=50,
        learning_rate=1e-3, on_epoch=report,
    )  # fmt: skip
    assert told == list(zip(range(3), log.train, log.validation, strict=True))
