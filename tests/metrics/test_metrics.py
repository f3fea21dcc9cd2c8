"""Correlation, coarsening and the noise ceiling against their definitions."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import pearsonr, spearmanr

from sphistex.metrics import coarsen, correlation_by_scale, noise_ceiling, pearson, spearman, thin_counts


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_pearson_is_scipys(rng):
    a, b = rng.random((50, 4)), rng.random((50, 4))
    np.testing.assert_allclose(pearson(a, b), [pearsonr(a[:, i], b[:, i]).statistic for i in range(4)])


def test_constant_prediction_has_no_correlation_and_constant_truth_no_answer(rng):
    varied, constant = rng.random((20, 1)), np.ones((20, 1))
    assert pearson(constant, varied) == 0
    assert np.isnan(pearson(varied, constant))


def test_coarsening_keeps_the_mass_of_the_mask(rng):
    values, mask = rng.random((12, 16, 3)), rng.random((12, 16)) > 0.3
    sums, kept = coarsen(values, mask, 4, min_share=0)
    assert kept.shape == (3, 4)
    np.testing.assert_allclose(sums.sum(0), values[mask].sum(0))


def test_whole_blocks_only(rng):
    mask = np.ones((8, 8), bool)
    mask[0, 0] = False
    assert coarsen(rng.random((8, 8)), mask, 2, min_share=1.0)[1].sum() == 15


@pytest.mark.parametrize("as_sparse", [False, True])
def test_thinning_splits_without_loss_and_independently(rng, as_sparse):
    counts = rng.poisson(4.0, (200, 200))
    first, second = thin_counts(sparse.csr_matrix(counts) if as_sparse else counts, share=0.3, seed=1)
    first, second = (x.toarray() if isinstance(x, sparse.csr_matrix) else x for x in (first, second))
    np.testing.assert_array_equal(first + second, counts)
    assert first.mean() == pytest.approx(1.2, rel=0.02)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_the_ceiling_is_what_the_rate_itself_reaches(rng):
    """The true rate correlates with a noisy truth as much as the ceiling says."""
    y, x = np.mgrid[:96, :96]
    rate = (3 + 2 * np.sin(x / 9) * np.cos(y / 11))[..., None]
    truth, mask = rng.poisson(rate), np.ones((96, 96), bool)
    ceiling = noise_ceiling(truth, mask).ceiling
    reached = correlation_by_scale(rate, truth, mask).pearson
    np.testing.assert_allclose(ceiling, reached, atol=0.02)
    half = thin_counts(truth, seed=3)[1]
    np.testing.assert_allclose(
        noise_ceiling(truth, mask, independent_half=True).ceiling,
        correlation_by_scale(rate, half, mask).pearson,
        atol=0.03,
    )


@pytest.mark.parametrize("as_sparse", [False, True])
def test_fractions_of_counts_are_not_thinned(as_sparse):
    counts = np.array([[0.4, 2.5, 1.6]])
    with pytest.raises(ValueError, match="not whole numbers"):
        thin_counts(sparse.csr_matrix(counts) if as_sparse else counts)


def test_the_ceiling_of_the_same_counts_and_seed_is_the_same_however_they_are_held(rng):
    """Genes are thinned a few at a time, never all the counts together."""
    mask = rng.random((32, 32)) > 0.2
    truth = rng.poisson(rng.gamma(2.0, 1.0, (32, 32, 400)))
    held = [truth, sparse.csr_matrix(truth.reshape(-1, 400)), truth[mask]]
    ceilings = [noise_ceiling(x, mask, factors=(1,), seed=5) for x in held]
    for other in ceilings[1:]:
        np.testing.assert_array_equal(other.ceiling, ceilings[0].ceiling)
    assert not np.array_equal(noise_ceiling(truth, mask, factors=(1,), seed=6).ceiling, ceilings[0].ceiling)
    tracemalloc.start()
    noise_ceiling(truth, mask, factors=(1,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < truth.nbytes, "two halves of everything take more"


def test_the_share_of_the_ceiling_is_a_column(rng):
    truth, mask = rng.poisson(rng.gamma(2.0, 2.0, (32, 32, 3))), np.ones((32, 32), bool)
    truth[..., 2] = 0
    truth[0, 0, 2] = 1  # one molecule cannot be in both halves
    ceiling = noise_ceiling(truth, mask, genes=list("abc"), factors=(1, 2))
    predicted = truth + rng.normal(size=truth.shape)
    table = correlation_by_scale(predicted, truth, mask, genes=list("abc"), factors=(1, 2), ceiling=ceiling)
    known = table[table.gene != "c"]
    np.testing.assert_allclose(known.ceiling_share * known.ceiling, known.pearson)
    assert table[table.gene == "c"].ceiling_share.isna().all()
    for changes in ({"factors": (1, 4)}, {"genes": list("abd")}, {"statistics": ("spearman",)}):
        how = {"genes": list("abc"), "factors": (1, 2), "ceiling": ceiling} | changes
        with pytest.raises(ValueError, match="ceiling must be that of the same genes"):
            correlation_by_scale(predicted, truth, mask, **how)


def test_spearman_is_scipys_with_ties(rng):
    a, b = rng.poisson(2.0, (60, 3)), rng.poisson(2.0, (60, 3))
    np.testing.assert_allclose(spearman(a, b), [spearmanr(a[:, i], b[:, i]).statistic for i in range(3)])


def test_scores_of_many_genes_are_those_of_each_gene_alone(rng):
    """They are computed some genes at a time."""
    truth, mask = rng.poisson(3.0, (16, 16, 70)), rng.random((16, 16)) > 0.2
    predicted = truth + rng.normal(size=truth.shape)
    names = [f"g{i}" for i in range(70)]
    table = correlation_by_scale(predicted, truth, mask, genes=names, factors=(1, 4))
    assert list(table.columns) == ["gene", "scale_um", "pearson", "spearman"]
    assert list(table.gene) == names * 2
    for gene in (0, 33, 69):
        alone = correlation_by_scale(predicted[..., [gene]], truth[..., [gene]], mask, factors=(1, 4))
        np.testing.assert_allclose(table[table.gene == names[gene]][["pearson", "spearman"]],
                                   alone[["pearson", "spearman"]])  # fmt: skip
