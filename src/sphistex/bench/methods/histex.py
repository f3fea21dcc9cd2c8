"""The package's own model: as published, with one part of it left out, and as it is by default.

On a CPU the published 500 epochs of five models would take many hours, so that there they are only begun: a number
from a CPU is not one of the published method.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sphistex.bench.methods._resolver import resolve
from sphistex.bench.problem import Problem
from sphistex.nn import PRESETS, FitParameters, parameters

# About half a minute each on two cores, with a thousand spots.
EPOCHS_ON_CPU = 4
ON_CPU = f"1 model for {EPOCHS_ON_CPU} epochs instead of {PRESETS['paper'].n_models} for {PRESETS['paper'].epochs} each"


def paper(problem: Problem) -> NDArray[np.float32]:
    """The published model; on a CPU one model, for :data:`EPOCHS_ON_CPU` epochs."""
    return resolve(problem, _published(problem))


def paper_no_histology(problem: Problem) -> NDArray[np.float32]:
    """The published model on features that are all zero."""
    blank = np.broadcast_to(np.float32(0), tuple(problem.features.features.shape))
    return resolve(replace(problem, features=replace(problem.features, features=blank)), _published(problem))


def paper_no_attention(problem: Problem) -> NDArray[np.float32]:
    """The published model without attention to the spots around."""
    return resolve(problem, _published(problem, layers=0))


def paper_no_enhancement(problem: Problem) -> NDArray[np.float32]:
    """The published model on the measured spots alone."""
    return resolve(problem, _published(problem, spots="measured", enhanced_bags=False))


def sphistex(problem: Problem) -> NDArray[np.float32]:
    """The model as it is by default."""
    return resolve(problem, parameters())


def _published(problem: Problem, **changes: Any) -> FitParameters:
    if problem.device == "cpu":
        changes |= {"n_models": 1, "epochs": EPOCHS_ON_CPU}
    return parameters("paper", **changes)
