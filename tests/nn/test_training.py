"""Training finds a planted relation, and what is held out stays out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sphistex.nn.checkpoint import Checkpoint
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

    def keep(*_: Any) -> None:
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    arguments: dict[str, Any] = {"epochs": 6, "patience": None, "batch_size": 25, "learning_rate": 1e-2}
    log = train(model, objective, data, held_out, **(arguments | {"on_epoch": keep} | changes))
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
    # neighbours at random are there to be overfitted to
    model, log, _ = fitted(data, folds(N_BAGS, N_MODELS), epochs=48, layers=layers, dropout=0.3 * layers)
    found = rates_of(model, data).mean(0)
    spread = (data.counts / N_SUPERPIXELS)[:, None].expand(-1, N_SUPERPIXELS, -1).flatten(0, 1)
    assert correlation(found, truth) > (0.4 if layers else 0.8)
    assert correlation(found, truth) > 2 * correlation(spread, truth), "better than the bag's mean, everywhere"
    assert min(log.validation) < log.validation[0]


def test_genes_are_learnt_as_well_where_a_step_looks_at_some() -> None:
    """The one that is learnt worst as well as where every step looks at all; over seeds, as fits to so few differ."""
    data, truth = planted()

    def worst(genes_per_step: int | None) -> float:
        found = []
        for seed in range(4):
            how: dict[str, Any] = {"epochs": 80, "genes_per_step": genes_per_step, "seed": seed}
            how["learning_rate"] = 3e-3  # which is raised where steps look at some; the others' is beyond that
            rates = rates_of(fitted(data, folds(N_BAGS, N_MODELS), **how)[0], data).mean(0)
            found.append(min(correlation(rates[:, [g]], truth[:, [g]]) for g in range(N_GENES)))
        return float(np.mean(found))

    assert worst(2) > 0.9 * worst(None) > 0.3


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


def test_every_model_stops_by_itself_when_it_improves_no_more() -> None:
    data, _ = planted()
    data.counts = data.counts[torch.randperm(N_BAGS)]
    held_out = folds(N_BAGS, N_MODELS)
    model, log, states = fitted(data, held_out, epochs=60, patience=3, schedule=False, learning_rate=3e-2)
    final = model.state_dict()
    stopped = [len(losses) - 1 for losses in log.validation_of]
    assert [last - best for last, best in zip(stopped, log.best_epoch, strict=True)] == [3, 3]
    assert len(log.train) == max(stopped) + 1 < 60
    for number, epoch in enumerate(log.best_epoch):
        assert all(torch.equal(value[number], states[epoch][name][number]) for name, value in final.items())


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


@pytest.mark.parametrize("member", range(N_MODELS))
@pytest.mark.parametrize("layers", [0, 1])
def test_a_model_comes_out_the_same_alone_and_beside_others(member: int, layers: int) -> None:
    """Order of the bags, dropout, what is drawn, and when it stops; products of attention may be rounded otherwise."""
    data, _ = planted()
    held_out = folds(N_BAGS - 2, N_MODELS)
    held_out = torch.cat([held_out, torch.tensor([[True, True], [False, False]])], 1)  # not as many for each
    how: dict[str, Any] = {"epochs": 3 if layers else 20, "patience": 2, "batch_size": 25, "learning_rate": 1e-2}
    how |= {"genes_per_step": 4, "seed": 3}
    objective = PoissonCounts(data.counts, data.weight.sum(1))
    made = replace(data, draw=lambda generator: (torch.poisson(data.counts, generator), data.spots, data.spot_mask))
    together = network(layers=layers, dropout=0.3)
    alone = together.take([member])
    log = train(together, objective, made, held_out, **how)
    own_log = train(alone, objective, made, held_out, members=[member], **how)
    assert own_log.best_epoch == [log.best_epoch[member]]
    assert own_log.validation_of == [pytest.approx(log.validation_of[member], rel=1e-5)]
    for name, value in together.take([member]).state_dict().items():
        if layers:
            torch.testing.assert_close(alone.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(alone.state_dict()[name], value)


def test_a_model_that_fails_takes_no_other_with_it() -> None:
    data, _ = planted()
    nobody = torch.zeros(N_MODELS, N_BAGS, dtype=torch.bool)
    only_first = nobody.clone()
    only_first[1] = True  # the second model sees nothing at all
    (_, _, both), (_, _, one) = fitted(data, nobody), fitted(data, only_first)
    for name in both[-1]:
        torch.testing.assert_close(both[-1][name][0], one[-1][name][0])


def test_logs_of_models_trained_apart_are_those_of_an_ensemble() -> None:
    one, two = TrainingLog([[3.0, 1.0]], [[4.0, 2.0]], [1]), TrainingLog([[5.0]], [[6.0]], [0])
    assert TrainingLog.joined([one, two]) == TrainingLog([[3.0, 1.0], [5.0]], [[4.0, 2.0], [6.0]], [1, 0])
    assert TrainingLog.joined([one, two]).train == [4.0, 3.0], "one that has stopped counts with its last"


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

    def draw(_: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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


# ------------------------------------------------------------------------------------------------ interruptions


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("patience", [None, 2])
def test_interrupted_at_any_epoch_it_comes_out_as_if_it_had_not_been(tmp_path: Path, patience: int | None) -> None:
    data, _ = planted()
    held_out, checkpoint = folds(N_BAGS, N_MODELS), tmp_path / "new" / "training.pt"
    how: dict[str, Any] = {
        "epochs": 8, "patience": patience, "layers": 1, "dropout": 0.3, "genes_per_step": 3, "learning_rate": 3e-2,
    }  # fmt: skip
    model, log, _ = fitted(data, held_out, **how)
    told: list[int] = []

    def interrupt(epoch: int, *_: float) -> None:
        told.append(epoch)
        raise Interrupted

    for epoch in range(len(log)):
        with pytest.raises(Interrupted):
            fitted(data, held_out, checkpoint=checkpoint, on_epoch=interrupt, **how)
        assert told[-1] == epoch, "an epoch further each time"
        assert [path.name for path in checkpoint.parent.iterdir()] == ["training.pt"]
    again, same_log, _ = fitted(data, held_out, checkpoint=checkpoint, on_epoch=interrupt, **how)
    assert same(again.state_dict(), model.state_dict())
    assert same_log == log


@pytest.mark.parametrize("damage", [0, 1, 1000, -1, None])
def test_a_damaged_checkpoint_is_ignored_with_a_warning(tmp_path: Path, damage: int | None) -> None:
    data, _ = planted()
    held_out, checkpoint = folds(N_BAGS, N_MODELS), tmp_path / "training.pt"
    model, _, _ = fitted(data, held_out, epochs=2, checkpoint=checkpoint)
    whole = checkpoint.read_bytes()
    if damage is None:  # numbers that torch reads without an error
        largest = max(torch.load(checkpoint)["network"].values(), key=torch.numel)
        place = whole.index(largest.contiguous().numpy().tobytes())
        checkpoint.write_bytes(whole[:place] + bytes(4) + whole[place + 4 :])
    else:
        checkpoint.write_bytes(whole[:damage])
    with pytest.warns(UserWarning, match=r"training.pt cannot be read, training starts anew"):
        again, log, states = fitted(data, held_out, epochs=2, checkpoint=checkpoint)
    assert len(states) == 2
    assert same(again.state_dict(), model.state_dict())
    assert Checkpoint(checkpoint).load() is not None, "a new one is written"


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond some bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_training_goes_on_with_one_warning(tmp_path: Path) -> None:
    data, _ = planted()
    held_out, checkpoint = folds(N_BAGS, N_MODELS), tmp_path / "training.pt"
    with full_disk(), pytest.warns(UserWarning, match="no checkpoint can be written.*Training goes on") as warned:
        model, _, _ = fitted(data, held_out, epochs=3, checkpoint=checkpoint)
    assert len(warned) == 1
    assert same(model.state_dict(), fitted(data, held_out, epochs=3)[0].state_dict())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path: Path) -> None:
    data, _ = planted()
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="no checkpoint can be written"):
        fitted(data, folds(N_BAGS, N_MODELS), epochs=1, checkpoint=tmp_path / "file" / "training.pt")


# ------------------------------------------------------------------------------------------------ out of memory


class Small(PoissonCounts):
    """A device on which the loss of more than so many bags does not fit."""

    most, largest, error = 1000, 0, torch.OutOfMemoryError("CUDA out of memory.")

    def loss(self, latent: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if latent.shape[1] > self.most:
            raise self.error
        self.largest = max(self.largest, latent.shape[1])
        return super().loss(latent, *args, **kwargs)


def on_small(most: int, **changes: Any) -> tuple[HISTEX, TrainingLog, Small]:
    data, _ = planted()
    model, small = network(layers=1), Small(data.counts, data.weight.sum(1))
    small.most = most
    for name in [name for name in changes if hasattr(small, name)]:
        setattr(small, name, changes.pop(name))
    arguments = {"epochs": 3, "patience": None, "batch_size": 50, "learning_rate": 1e-2} | changes
    return model, train(model, small, data, folds(N_BAGS, N_MODELS), **arguments), small


def test_without_memory_for_a_batch_its_halves_give_the_same_gradients() -> None:
    whole, log, _ = on_small(1000)
    with pytest.warns(UserWarning, match="no memory on cpu for 50 bags at once: they are halved") as warned:
        halved, other, small = on_small(20)
    assert len(warned) == 1
    assert small.largest == 13, "50, 25, 13"
    torch.testing.assert_close(other.train_of, log.train_of, rtol=1e-4, atol=1e-5)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halved.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:no memory")
def test_without_memory_for_one_bag_it_is_said() -> None:
    with pytest.raises(MemoryError, match="single bag.*cpu.*n_models"):
        on_small(0)


def test_the_cpu_says_in_its_own_way_that_memory_is_out() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.warns(UserWarning, match="no memory"):
        _, _, small = on_small(30, error=found.value)
    assert 0 < small.largest <= 30


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        on_small(20, error=RuntimeError("shapes cannot be multiplied"))
