"""A multilayer perceptron from the features of a superpixel to its expression, learnt from the sums over spots.

The principle of iStar (Zhang et al. 2024, Nature Biotechnology 42, 1372–1377): the image alone, no spots around.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sphistex.bench.methods._resolver import resolve
from sphistex.bench.problem import Problem
from sphistex.nn import FitParameters, parameters

EPOCHS = 400
# Fewer, so that a thousand spots take about a minute on two cores: learning has then only begun.
EPOCHS_ON_CPU = 20
ON_CPU = f"{EPOCHS_ON_CPU} epochs instead of {EPOCHS}"
PATIENCE = 10
LEARNING_RATE = 1e-4


def perceptron_published(problem: Problem) -> NDArray[np.float32]:
    """Squared error of scaled means, for a fixed number of epochs; on a CPU :data:`EPOCHS_ON_CPU`."""
    return resolve(problem, _published(problem, holdout=0.0, patience=None))


def perceptron_early_stopping(problem: Problem) -> NDArray[np.float32]:
    """The same, stopped by spots that are held out."""
    return resolve(problem, _published(problem, holdout=0.2, patience=PATIENCE))


def perceptron_poisson(problem: Problem) -> NDArray[np.float32]:
    """The likelihood of the counts, with dropout and early stopping: the default model with the image alone."""
    return resolve(
        problem, parameters(context=problem.features.context, layers=0, n_models=1, residuals=False, mixed=False)
    )


def _published(problem: Problem, **changes: Any) -> FitParameters:
    return parameters(
        context=problem.features.context,
        n_models=1,
        objective="squares",
        embed=None,
        layers=0,
        hidden=(256,) * 4,
        dropout=0.0,
        epochs=EPOCHS_ON_CPU if problem.device == "cpu" else EPOCHS,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        schedule=False,
        residuals=False,
        mixed=False,
        **changes,
    )
