"""The outcome network: its loss, what it may look at, and what it says of its reasons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sphistex.nn.outcome import Ensemble, Outcome, OutcomeNetwork, Pictures, cox_losses
from sphistex.nn.picture import Layout

_ROW_COLUMN = np.array([(row, column) for row in range(6) for column in range(12) if (row + column) % 2 == 0])


def _pictures(n: int, channels: int = 3, covariates: int = 2, seed: int = 0) -> Pictures:
    rng = np.random.default_rng(seed)
    layouts = [Layout.of(*_ROW_COLUMN[: 36 - number % 3].T, hexagonal=True) for number in range(n)]
    values = [rng.normal(size=(len(layout.rows), channels)) for layout in layouts]
    pooled = [np.ones(len(layout.rows), dtype=bool) for layout in layouts]
    return Pictures.of(layouts, values, pooled, np.arange(n), rng.normal(size=(n, covariates)))


def _network(**kwargs: int) -> OutcomeNetwork:
    torch.manual_seed(0)
    network = OutcomeNetwork(kwargs.get("channels", 3), kwargs.get("covariates", 2), hexagonal=True).eval()
    with torch.no_grad():  # as after training: the response normalisation starts at zero
        for block in network.blocks:
            block.get_parameter("gain").normal_()
    return network


def test_cox_loss_is_the_partial_likelihood_with_ties():
    rng = np.random.default_rng(0)
    risk, time, event = rng.normal(size=12), rng.integers(1, 6, 12).astype(float), rng.random(12) < 0.7
    expected = [
        -risk[i] + np.log(sum(np.exp(risk[j]) for j in range(12) if time[j] >= time[i])) for i in range(12) if event[i]
    ]
    found = cox_losses(torch.tensor(risk), torch.tensor(time), torch.tensor(event))
    assert found.numpy() == pytest.approx(np.array(expected))


def test_padding_and_what_is_not_measured_change_nothing():
    pictures, network = _pictures(5), _network()
    wider = replace(
        pictures,
        values=torch.nn.functional.pad(pictures.values, (0, 4, 0, 3)),
        mask=torch.nn.functional.pad(pictures.mask, (0, 4, 0, 3)),
        pooled=torch.nn.functional.pad(pictures.pooled, (0, 4, 0, 3)),
    )
    filled = replace(pictures, values=pictures.values.masked_fill(~pictures.mask[:, None], 9.0))
    said = network(pictures)
    torch.testing.assert_close(network(wider), said)
    torch.testing.assert_close(network(filled), said)


def test_a_position_is_seen_with_its_six_neighbours():
    torch.manual_seed(0)
    network = OutcomeNetwork(1, 0, hexagonal=True).eval()
    layout = Layout.of(*_ROW_COLUMN.T, hexagonal=True)
    centre = np.flatnonzero((_ROW_COLUMN == [3, 5]).all(1))[0]
    pooled = np.arange(len(_ROW_COLUMN)) == centre
    values = np.random.default_rng(0).normal(size=(len(pooled), 1))
    pictures = Pictures.of([layout], [values], [pooled], np.zeros(1, dtype=int), np.zeros((1, 0)))
    picture = pictures.values.requires_grad_()
    network(replace(pictures, values=picture)).sum().backward()
    assert picture.grad is not None
    seen = layout.values(picture.grad[0])[:, 0].numpy() != 0
    step = np.abs(_ROW_COLUMN - _ROW_COLUMN[centre])
    near = (step.sum(1) == 2) & (step[:, 0] < 2)
    assert np.array_equal(seen, near | pooled)


def test_sections_of_a_patient_are_averaged():
    one, network = _pictures(3), _network()
    share = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    twins = replace(one, share=share, covariates=one.covariates[[0, 2]])
    for name in ("values", "mask", "pooled"):
        of_each = getattr(one, name).clone()
        of_each[1] = of_each[0]
        twins = replace(twins, **{name: of_each})
    torch.testing.assert_close(network(twins), network(one)[[0, 2]])
    taken = twins.take(np.array([1]))
    assert len(taken.values) == 1
    torch.testing.assert_close(network(taken), network(one)[[2]])


def test_hiding_positions_never_hides_a_whole_section():
    pictures = _pictures(3)
    assert torch.equal(pictures.without(torch.ones_like(pictures.mask)).mask, pictures.mask)
    some = torch.zeros_like(pictures.mask)
    some[:, 0] = True
    assert not pictures.without(some).mask[:, 0].any()


def test_attribution_adds_up_to_the_difference_from_the_mean_section():
    pictures = _pictures(4)
    ensemble = Ensemble([_network(), _network()])
    blank = replace(pictures, values=torch.zeros_like(pictures.values))
    difference = ensemble.predict(pictures) - ensemble.predict(blank)
    found = ensemble.attribution(pictures)
    assert found.sum((1, 2)).numpy() == pytest.approx(difference, abs=0.02 * np.abs(difference).max())
    assert not found[~pictures.mask].any()


@pytest.fixture(scope="module")
def planted() -> tuple[Pictures, Outcome, np.ndarray]:
    """One channel is shifted by the log of the hazard."""
    pictures, hidden = _pictures(60, seed=1), np.random.default_rng(2).normal(size=60)
    values = pictures.values.clone()
    values[:, 0] += torch.from_numpy(hidden).float()[:, None, None]
    pictures = replace(pictures, values=values * pictures.mask[:, None])
    time = np.random.default_rng(3).exponential(np.exp(-2 * hidden))
    return pictures, Outcome(time=time, event=np.ones(60, dtype=bool)), hidden


def test_it_learns_what_is_planted_and_the_same_again(planted):
    pictures, outcome, hidden = planted
    seen, unseen = np.arange(40), np.arange(40, 60)
    state = torch.get_rng_state()
    first, again = (
        Ensemble.fit(pictures.take(seen), outcome.take(seen), hexagonal=True, n_models=1, seed=5) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    said = first.predict(pictures.take(unseen))
    assert np.corrcoef(said, hidden[unseen])[0, 1] > 0.8
    assert np.array_equal(said, again.predict(pictures.take(unseen)))
    assert first.predict(pictures.take(seen)).mean() == pytest.approx(0, abs=1e-4)


def test_it_learns_a_response(planted):
    pictures, _, hidden = planted
    outcome = Outcome(response=hidden > 0)
    ensemble = Ensemble.fit(pictures.take(np.arange(40)), outcome.take(np.arange(40)), hexagonal=True, n_models=1)
    said = ensemble.predict(pictures.take(np.arange(40, 60)))
    assert np.mean((said > 0) == (hidden[40:] > 0)) >= 0.8
