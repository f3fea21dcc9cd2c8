"""The package's own model with any parameters, as a method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sphistex.bench.problem import Problem
from sphistex.nn import FitParameters, SuperResolver


def resolve(problem: Problem, parameters: FitParameters) -> NDArray[np.float32]:
    """Fit with ``parameters``, whose context the features get, and predict the tissue (n_superpixels, n_genes)."""
    features = replace(problem.features, context=parameters.context)
    model = SuperResolver.fit(
        features,
        problem.bags,
        problem.spots,
        problem.genes,
        parameters,
        seed=problem.seed,
        device=problem.device,
    )
    out = model.predict_tissue(features, problem.bags, problem.spots, seed=problem.seed)
    return np.maximum(out, 0, out=out)
