"""A model learns what features say of expression and regions, at the position and around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sphistex.nn.histology import HistologyModel, HistologyParameters, LatticeSection, correlation, histology_parameters
from sphistex.nn.picture import Layout

GENES, CLASSES = [f"g{i}" for i in range(6)], ["stroma", "tumour"]
QUICK = HistologyParameters(
    components=8, widths=(16,), n_models=1, epochs=80, alpha=1.0, dropout=0.0, learning_rate=5e-3
)


def section(seed: int, side: int = 18) -> LatticeSection:
    """Expression follows the features of the position, and of one gene those beside it; the class the first one."""
    rng = np.random.default_rng(seed)
    array = np.array([(r, c) for r in range(side) for c in range(2 * side) if (r + c) % 2 == 0])
    layout = Layout.of(*array.T, hexagonal=True)
    features = rng.normal(size=(len(array), 8)).astype(np.float32)
    expression = features[:, :6] + 0.3 * rng.normal(size=(len(array), 6))
    apart = np.abs(array[:, None] - array[None])
    beside = (apart == [0, 2]).all(-1) | (apart == [1, 1]).all(-1)
    expression[:, 5] = (beside @ features[:, 7]) / 2
    regions = (features[:, 0] > 0).astype(np.int64)
    return LatticeSection(layout, features, (expression + 5).astype(np.float32), regions)


@pytest.fixture(scope="module")
def sections() -> list[LatticeSection]:
    return [section(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def model(sections: list[LatticeSection]) -> HistologyModel:
    return HistologyModel.fit(sections[:3], GENES, CLASSES, QUICK)


def scores(model: HistologyModel, one: LatticeSection) -> np.ndarray:
    assert one.expression is not None
    return correlation(torch.from_numpy(model.predict(one).expression), torch.from_numpy(one.expression)).numpy()


def test_expression_of_an_unseen_section_is_predicted(sections: list[LatticeSection], model: HistologyModel) -> None:
    ridge = HistologyModel.fit(sections[:3], GENES, CLASSES, replace(QUICK, ridge=1.0, epochs=1))
    assert scores(model, sections[3])[:5].min() > 0.8
    assert scores(ridge, sections[3])[5] < 0.3, "what is beside a position says nothing of it to a regression"
    assert scores(model, sections[3])[5] > 0.6, "to the network it does"


def test_levels_of_genes_come_back(sections: list[LatticeSection], model: HistologyModel) -> None:
    found, truth = model.predict(sections[3]).expression, sections[3].expression
    assert truth is not None
    np.testing.assert_allclose(found.mean(0), truth.mean(0), atol=0.2)


def test_regions_are_told_apart(sections: list[LatticeSection], model: HistologyModel) -> None:
    probabilities = model.predict(sections[3]).probabilities
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == sections[3].regions).mean() > 0.85


def test_unknown_regions_are_left_out(sections: list[LatticeSection]) -> None:
    half = [replace(one, regions=np.array(one.regions)) for one in sections[:3]]
    for one in half:
        assert one.regions is not None
        one.regions[::2] = -1
    found = HistologyModel.fit(half, GENES, CLASSES, QUICK).predict(sections[3]).probabilities
    assert (found.argmax(1) == sections[3].regions).mean() > 0.85


def test_versions_of_other_stains_make_their_stain_matter_less(sections: list[LatticeSection]) -> None:
    """Two features of the stain, which is the same in all sections that were measured but for a little."""
    rng = np.random.default_rng(0)
    of_expression = rng.normal(size=(8, 2)).astype(np.float32)

    def stained(one: LatticeSection, amounts: list[float]) -> tuple[np.ndarray, ...]:
        return tuple(np.hstack([one.features + a, one.features @ of_expression + 3 * a]) for a in amounts)

    plain = [replace(one, features=stained(one, [0.0])[0]) for one in sections]
    versions = [stained(one, [-0.6, -0.3, 0.3, 0.6]) for one in sections]
    jittered = [replace(one, versions=values) for one, values in zip(plain, versions, strict=True)]
    other = replace(sections[3], features=stained(sections[3], [0.5])[0])
    errors = []
    for seen in (plain, jittered):
        model = HistologyModel.fit(seen[:3], GENES, CLASSES, QUICK)
        assert other.expression is not None
        errors.append(((model.predict(other).expression - other.expression) ** 2).mean())
    assert errors[1] < 0.7 * errors[0]


def test_same_seed_same_model(sections: list[LatticeSection]) -> None:
    quick = replace(QUICK, epochs=3)
    first, second, other = (
        HistologyModel.fit(sections[:2], GENES, CLASSES, quick, seed=seed).predict(sections[3]).expression
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


def test_a_saved_model_predicts_the_same(sections: list[LatticeSection], model: HistologyModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = HistologyModel.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(sections[3]).expression, model.predict(sections[3]).expression)
    assert (again.genes, again.classes, again.info) == (model.genes, model.classes, model.info)
    with pytest.raises(FileNotFoundError, match="no saved HistologyModel"):
        HistologyModel.load(tmp_path)


def test_parameters_that_make_no_sense_are_refused() -> None:
    for changes, said in (
        ({"epoch": 3}, "unknown parameters.*epoch"),
        ({"epochs": 0}, "epochs=0 must be positive"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"widths": ()}, "widths=()"),
    ):
        with pytest.raises(ValueError, match=said.replace("()", r"\(\)")):
            histology_parameters(**changes)
    square = replace(section(0), layout=replace(section(0).layout, hexagonal=False))
    with pytest.raises(ValueError, match="hexagonal lattice and others on a square"):
        HistologyModel.fit([section(1), square], GENES, CLASSES, QUICK)


def test_parameters_are_plain_numbers() -> None:
    how = {"epochs": np.int64(3), "learning_rate": np.float32(0.5), "widths": [np.int64(8)], "ridge": 1}
    chosen = histology_parameters(**how)
    assert chosen == HistologyParameters(epochs=3, learning_rate=0.5, widths=(8,), ridge=1.0)
    assert {type(chosen.epochs), type(chosen.widths[0])} == {int}
    wrong: list[dict[str, Any]] = [{"epochs": 1.5}, {"epochs": "9"}, {"widths": 8}, {"n_models": True}, {"alpha": "1"}]
    for one in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(one))}=.* must be"):
            histology_parameters(**one)
