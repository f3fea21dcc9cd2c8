"""One model of several sections: each on its own scale, none reaching into another, and one without any spots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter

from sphistex.bags import Bags
from sphistex.grid import Grid
from sphistex.nn import CrossAttention, FeatureMap, Inputs, Spots, SuperResolver, bagging, parameters
from sphistex.nn.bagging import far_apart, side_by_side, training_bags
from sphistex.nn.held_out import predict_held_out
from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import PoissonCounts
from sphistex.nn.scaling import density, depth
from sphistex.nn.training import BagData

SIDE, N_GENES = 70, 4
GENES = [f"g{i}" for i in range(N_GENES)]
EFFECT = np.random.default_rng(7).normal(0, 0.5, (3, N_GENES))
QUICK: dict[str, Any] = {
    "n_models": 3,
    "epochs": 25,
    "hidden": (32,),
    "context": (0, 2),
    "learning_rate": 3e-3,
    "d": 16,
    "heads": 2,
}


def section(
    seed: int, *, deep: NDArray | float = 1.0, stain: tuple[float, float] = (1.0, 0.0)
) -> tuple[Inputs, NDArray]:
    """A section whose rates are what the image shows times ``deep``, and these rates (n_superpixels, n_genes)."""
    rng = np.random.default_rng(seed)
    seen = np.stack([gaussian_filter(plane, 1.5) for plane in rng.normal(size=(3, SIDE, SIDE))])
    seen = (seen / seen.std((1, 2), keepdims=True)).astype(np.float32)
    rates = 2.0 * np.exp(np.einsum("crk,cg->rkg", seen, EFFECT)).reshape(-1, N_GENES) * deep
    row, column = np.indices((8, 6)).reshape(2, -1)
    xy_um = 35 + np.column_stack([column * 85.0 + 40 * (row % 2), row * 68.0])
    grid = Grid((SIDE, SIDE), mpp=0.5)
    bags = Bags.from_disks(grid, xy_um / 0.5, 27.5 / 0.5)
    spots = Spots(xy_um, np.full(len(xy_um), 27.5), 85.0, rng.poisson(bags.weights @ rates).astype(np.float32))
    features = FeatureMap(seen * stain[0] + stain[1], np.ones((SIDE, SIDE), dtype=bool), (0, 2))
    return Inputs(features, bags, spots), rates


def image_of(inputs: Inputs) -> Inputs:
    """The same without its spots."""
    none = Spots(np.zeros((0, 2)), np.zeros(0), np.inf, np.zeros((0, N_GENES), dtype=np.float32))
    return Inputs(inputs.features, Bags(sparse.csr_matrix((0, SIDE**2)), inputs.bags.grid), none)


def map_of(model: SuperResolver, inputs: Inputs) -> NDArray[np.float32]:
    return model.predict_tissue(inputs.features, inputs.bags, inputs.spots)


def agreement(found: NDArray, rates: NDArray) -> float:
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, rates.T, strict=True)]))


DEEP = np.array([3.0, 3.0, 3.0, 12.0])


@pytest.fixture(scope="module")
def pair() -> list[tuple[Inputs, NDArray]]:
    """Two sections of one tissue, the second deeper, one gene of it still more, and stained otherwise."""
    return [section(0), section(1, deep=DEEP, stain=(0.5, 3.0))]


@pytest.fixture(scope="module")
def joint(pair: list[tuple[Inputs, NDArray]]) -> SuperResolver:
    return SuperResolver.fit_sections([one for one, _ in pair], GENES, parameters(**QUICK))


def test_each_section_is_predicted_on_its_own_scale(pair: list[tuple[Inputs, NDArray]], joint: SuperResolver) -> None:
    for inputs, rates in pair:
        found = map_of(joint, inputs)
        assert agreement(found, rates) > 0.75
        np.testing.assert_allclose(found.mean(0), rates.mean(0), rtol=0.15)


def test_trust_is_learnt_of_all_and_said_on_the_scale_of_each(
    pair: list[tuple[Inputs, NDArray]], joint: SuperResolver
) -> None:
    assert joint.info["n_left_out"] > 50 > 0.6 * len(pair[0][0].spots), "more than one section has"
    assert (joint.image_share > 0.6).all()
    first, second = (joint.at(inputs).calibration for inputs, _ in pair)
    assert first is not None and second is not None
    measured = [inputs.spots.counts.sum(0) / inputs.bags.weights.sum() for inputs, _ in pair]
    np.testing.assert_allclose(second.mean / first.mean, measured[1] / measured[0], rtol=0.1)


def test_two_sections_say_more_than_one(pair: list[tuple[Inputs, NDArray]], joint: SuperResolver) -> None:
    inputs, rates = pair[0]
    alone = SuperResolver.fit_sections([inputs], GENES, parameters(**QUICK))
    assert agreement(map_of(joint, inputs), rates) > agreement(map_of(alone, inputs), rates) + 0.005


def test_another_section_is_scaled_by_its_own_spots(joint: SuperResolver) -> None:
    inputs, rates = section(2, deep=0.3, stain=(2.0, -1.0))
    found = map_of(joint, inputs)
    assert agreement(found, rates) > 0.7
    np.testing.assert_allclose(found.mean(0), rates.mean(0), rtol=0.15)


def test_a_section_without_spots_is_read_from_its_image(joint: SuperResolver) -> None:
    inputs, rates = section(2, stain=(2.0, -1.0))
    found = map_of(joint, image_of(inputs))
    assert np.isfinite(found).all()
    assert agreement(found, rates) > 0.6
    of_both = (1 + DEEP) / 2  # nothing tells how deep this one is
    np.testing.assert_allclose(found.mean(0), rates.mean(0) * of_both, rtol=0.25)


def test_saved_and_loaded_it_knows_its_sections(
    pair: list[tuple[Inputs, NDArray]], joint: SuperResolver, tmp_path: Any
) -> None:
    joint.save(tmp_path)
    again = SuperResolver.load(tmp_path)
    for inputs in (pair[1][0], image_of(pair[1][0])):
        np.testing.assert_allclose(map_of(again, inputs), map_of(joint, inputs), rtol=1e-5)


def test_a_model_scaled_twice_is_scaled_once(pair: list[tuple[Inputs, NDArray]], joint: SuperResolver) -> None:
    inputs = pair[1][0]
    once = joint.at(inputs)
    np.testing.assert_array_equal(map_of(once, inputs), map_of(joint, inputs))


def test_the_papers_objective_keeps_the_scales_apart_as_well(pair: list[tuple[Inputs, NDArray]]) -> None:
    changes = QUICK | {"context": (0,), "layers": 0, "epochs": 10, "batch_size": 16, "enhanced_bags": False}
    chosen = parameters("paper", **changes)
    sections = [replace(one, features=replace(one.features, context=(0,))) for one, _ in pair]
    model = SuperResolver.fit_sections(sections, GENES, chosen)
    for inputs, (_, rates) in zip(sections, pair, strict=True):
        np.testing.assert_allclose(map_of(model, inputs).mean(0), rates.mean(0), rtol=0.3)


def test_a_list_of_one_section_is_that_section(pair: list[tuple[Inputs, NDArray]]) -> None:
    inputs, chosen = pair[0][0], parameters(**QUICK | {"epochs": 2})
    one = SuperResolver.fit(inputs.features, inputs.bags, inputs.spots, GENES, chosen)
    other = SuperResolver.fit_sections([inputs], GENES, chosen)
    np.testing.assert_array_equal(map_of(one, inputs), map_of(other, inputs))


# ------------------------------------------------------------------------------------------------------- depth


def test_a_gene_has_its_own_depth_where_it_is_counted_often() -> None:
    first, _ = section(0)
    counts = first.spots.counts.copy()
    counts[:, 0] *= 5
    counts[:, 1] = 0
    counts[0, 1] = 1
    second = replace(first, spots=replace(first.spots, counts=counts))
    found = depth(second, density([first]))
    overall = counts.sum() / first.spots.counts.sum()
    assert found[0] == pytest.approx(5, rel=0.05)
    assert found[1] < 0.2 * overall, "counts that are missing say as much as those that are there"
    np.testing.assert_allclose(depth(first, density([first])), 1)
    few = replace(first, spots=replace(first.spots, counts=0.001 * counts))
    np.testing.assert_allclose(depth(few, density([few, few]) * 2), 0.5, rtol=0.02)


# ------------------------------------------------------------------------------------------- bags of all sections


def test_every_section_leaves_the_same_share_of_its_spots_out(pair: list[tuple[Inputs, NDArray]]) -> None:
    for bags in training_bags([one for one, _ in pair], parameters(n_models=5), seed=0):
        np.testing.assert_allclose(bags.held_out.double().mean(1), 0.2, atol=0.02)
        assert bags.held_out.sum(0).eq(1).all()


def test_memory_is_shared_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = section(0)[0], section(1)[0]
    few = np.arange(len(small.spots)) % 2 == 0
    small = replace(small, bags=small.bags.take(few), spots=_take(small.spots, few))
    whole = sum(one.bags.weights.nnz for one in (large, small))
    monkeypatch.setattr(bagging, "_MAX_INSTANCES", whole // 2)
    kept = training_bags([large, small], parameters(), seed=0)
    index, weight = side_by_side(kept)
    assert 0.4 * whole < (weight > 0).sum() <= 0.5 * whole
    assert len(kept[0]) == pytest.approx(2 * len(kept[1]), abs=2)
    n = len(kept[0])
    first, second = index[:n], index[n:][weight[n:] > 0]
    assert first.max() < len(kept[0].instances) <= second.min(), "superpixels of one section follow those of another"


def _take(spots: Spots, chosen: NDArray) -> Spots:
    return replace(spots, xy_um=spots.xy_um[chosen], radius_um=spots.radius_um[chosen], counts=spots.counts[chosen])


def test_spots_are_interpolated_inside_their_section() -> None:
    bags = training_bags([section(0)[0], section(1)[0]], parameters(), seed=0)
    xy_um = far_apart(bags)
    level = np.repeat([5.0, 50.0], [len(one) for one in bags])
    n = len(xy_um)
    data = BagData(
        features=torch.randn(1, n, 2),
        index=torch.arange(n)[:, None],
        weight=torch.ones(n, 1),
        counts=torch.tensor(np.stack([level] * 2, 1), dtype=torch.float32),
        spots=torch.randn(n, 3, 2),
        spot_mask=torch.ones(n, 3, dtype=torch.bool),
        section=torch.arange(2).repeat_interleave(torch.tensor([len(one) for one in bags])),
        depth=torch.ones(2, 2),
    )
    network = HISTEX(2, 2, 2, 2, d=4, heads=1, layers=1).eval()
    held_out = torch.cat([one.held_out[:2] for one in bags], dim=1).numpy()
    found = predict_held_out(
        network, PoissonCounts(data.counts, torch.ones(n)), data, held_out, xy_um, residuals=False, seed=0
    )
    np.testing.assert_allclose(found.interpolated, found.counts, rtol=1e-6)


# --------------------------------------------------------------------------------------------- nothing to attend to


@pytest.mark.parametrize("n_query", [2, 9])
def test_hidden_spots_are_as_no_spots(n_query: int) -> None:
    torch.manual_seed(0)
    attention = CrossAttention(2, 5, 6, 8, 2)
    query, context = torch.randn(2, 3, n_query, 5), torch.randn(2, 3, 4, 6)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[2, 1] = True
    found = attention(query, context, mask)
    without = attention(query, context[:, :, :0])
    torch.testing.assert_close(found[:, :2], without[:, :2])
    torch.testing.assert_close(found[:, 2:], attention(query, context[:, :, 1:2])[:, 2:])
    found.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in attention.parameters() if weight.grad is not None)
