"""What holds for every method, and what its kind of method finds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sphistex.bench.methods import DEFAULT, METHODS, coordinates, graph, histex, perceptron
from sphistex.bench.problem import Problem
from sphistex.nn import FeatureMap

IMAGE, FIELD = 0, 1
# The package's own model has tests of its own, and takes longer.
QUICK = [name for name in DEFAULT if name not in ("paper", "sphistex")]
WITHOUT_IMAGE = ["constant", "nearest", "linear", "kriging", "coordinates"]


@pytest.fixture(scope="module")
def found(section: Any) -> Any:
    """The map of a method on the larger section, made once."""
    return cache(lambda name: METHODS[name](section.problem))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is begun only."""
    for module in (perceptron, histex):
        monkeypatch.setattr(module, "EPOCHS_ON_CPU", 1)
    for module in (coordinates, graph):
        monkeypatch.setattr(module, "EPOCHS", 3)


def correlation(found: NDArray, section: Any, gene: int) -> float:
    return float(np.corrcoef(found[:, gene], section.rates[:, gene])[0, 1])


def test_all_but_the_ablations_are_run_by_default() -> None:
    assert set(METHODS) - set(DEFAULT) == {"paper-no-histology", "paper-no-attention", "paper-no-enhancement"}
    assert list(DEFAULT) == [name for name in METHODS if name in DEFAULT]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", METHODS)
def test_maps_are_counts_and_the_same_again(name: str, small: Problem) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = METHODS[name](small)
    assert torch.equal(torch.rand(3), expected), "the global random state is left alone"
    assert one.shape == (small.mask.sum(), len(small.genes))
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert one.min() >= 0
    np.testing.assert_array_equal(METHODS[name](small), one)


@pytest.mark.parametrize("name", [name for name in QUICK if name not in ("perceptron", "perceptron+stopping")])
def test_spots_add_up(name: str, found: Any, section: Any) -> None:
    weights = section.problem.bags.weights[:, section.problem.mask.ravel()]
    measured = section.problem.spots.counts.sum(0)
    np.testing.assert_allclose((weights @ found(name)).sum(0), measured, rtol=0.25)


@pytest.mark.parametrize("name", ["ridge", "ridge+residuals", "perceptron+poisson", "neighbourhood", "graph"])
def test_with_the_image_what_it_shows_is_found(name: str, found: Any, section: Any) -> None:
    assert correlation(found(name), section, IMAGE) > correlation(found("linear"), section, IMAGE) + 0.15


@pytest.mark.parametrize("name", ["perceptron", "perceptron+stopping"])
def test_published_perceptrons_find_what_the_image_shows(
    name: str, section: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptron, "LEARNING_RATE", 5e-3)
    monkeypatch.setattr(perceptron, "EPOCHS_ON_CPU", 10)
    assert correlation(METHODS[name](section.problem), section, IMAGE) > 0.6


@pytest.mark.parametrize("name", ["nearest", "linear", "kriging", "coordinates", "ridge+residuals"])
def test_with_the_places_what_changes_slowly_is_found(name: str, found: Any, section: Any) -> None:
    assert correlation(found(name), section, FIELD) > 0.8


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", [*WITHOUT_IMAGE, "paper-no-histology"])
def test_without_the_image_nothing_depends_on_it(name: str, small: Problem) -> None:
    other = FeatureMap(np.random.default_rng(1).random(small.features.features.shape), small.mask, (0, 1, 5))
    np.testing.assert_array_equal(METHODS[name](replace(small, features=other)), METHODS[name](small))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", QUICK)
def test_one_gene_may_be_asked_for(name: str, small: Problem) -> None:
    alone = replace(small, genes=small.genes[:1], spots=replace(small.spots, counts=small.spots.counts[:, :1]))
    assert METHODS[name](alone).shape == (small.mask.sum(), 1)
