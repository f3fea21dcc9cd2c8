"""Genes are judged by what was not seen."""

import numpy as np
import pytest

from sphistex.metrics import explained, thin_counts


@pytest.fixture
def rates():
    return np.random.default_rng(0).gamma(2.0, 5.0, (400, 3))


@pytest.fixture
def counts(rates):
    return np.random.default_rng(1).poisson(rates)


def test_who_knows_the_rates_explains_all_that_can_be_explained(rates, counts):
    found = explained(rates, rates * 0, counts, genes=list("abc"))
    assert found.explained_share.tolist() == pytest.approx([1, 1, 1], abs=0.04)
    assert (found.ceiling < 1).all()


def test_against_the_other_half_as_well(rates, counts):
    first, second = thin_counts(counts)
    found = explained(rates, rates * 0, second, genes=list("abc"), half=first)
    assert found.explained_share.tolist() == pytest.approx([1, 1, 1], abs=0.06)
    assert (found.ceiling < explained(rates, rates * 0, counts, genes=list("abc")).ceiling).all()


def test_verdicts_compare_with_chance_and_with_interpolation(rates, counts):
    noise = np.random.default_rng(2).gamma(2.0, 5.0, (400, 3))
    half_right = rates + 2 * noise
    expected = np.column_stack([rates[:, 0], half_right[:, 1], noise[:, 2]])
    interpolated = np.column_stack([half_right[:, 0], rates[:, 1], noise[:, 1]])
    found = explained(expected, interpolated, counts, genes=list("abc"))
    assert found.verdict.tolist() == ["better", "as interpolation", "as chance"]


def test_few_of_the_genes_that_pass_are_noise():
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 5.0, (100, 2000))
    expected = rates.copy()
    expected[:, 1000:] = rng.random((100, 1000))
    found = explained(expected, rng.random((100, 2000)), rng.poisson(rates), genes=[str(i) for i in range(2000)])
    passed = (found.verdict != "as chance").to_numpy()
    assert passed[:1000].mean() > 0.99
    assert 0.01 < passed[1000:].sum() / passed.sum() < 0.06
    noise = explained(expected[:, 1000:], rates[:, 1000:], rng.poisson(rates[:, 1000:]), genes=[*map(str, range(1000))])
    assert (noise.verdict == "as chance").mean() > 0.99


def test_a_gene_without_counts_is_as_chance():
    nothing = np.zeros((60, 1))
    found = explained(nothing, nothing, nothing, genes=["none"])
    assert found.verdict.tolist() == ["as chance"]
    assert np.isnan(found.explained_share.iloc[0])
