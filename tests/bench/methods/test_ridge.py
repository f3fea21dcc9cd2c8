"""Regression on mean features, and what it leaves unexplained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sphistex.bench.methods.ridge import ridge, ridge_residuals


def test_residuals_add_what_the_image_does_not_show(section: Any) -> None:
    of_field = [np.corrcoef(m(section.problem)[:, 1], section.rates[:, 1])[0, 1] for m in (ridge, ridge_residuals)]
    assert of_field[1] > of_field[0] + 0.2


def test_a_linear_gene_is_found(section: Any) -> None:
    """Means over spots of what is linear in the features are linear in the spots' mean features."""
    problem = section.problem
    rate = 5.0 + problem.features.gather(np.flatnonzero(problem.mask))[:, :1]
    counts = problem.bags.weights[:, problem.mask.ravel()] @ rate
    exact = replace(problem, spots=replace(problem.spots, counts=counts.astype(np.float32)), genes=["linear"])
    np.testing.assert_allclose(ridge(exact), rate, atol=0.25)  # the least penalty shrinks a little


def test_genes_do_not_depend_on_one_another(section: Any) -> None:
    problem = section.problem
    alone = replace(problem, spots=replace(problem.spots, counts=problem.spots.counts[:, 1:]), genes=["field"])
    np.testing.assert_allclose(ridge_residuals(alone), ridge_residuals(problem)[:, 1:], rtol=1e-4, atol=1e-5)
