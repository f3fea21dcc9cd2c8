"""The methods that a benchmark compares, each a function from a problem to counts per superpixel."""

from __future__ import annotations

from sphistex.bench.methods import (
    coordinates,
    graph,
    histex,
    interpolation,
    kriging,
    neighbourhood,
    perceptron,
    ridge,
)
from sphistex.bench.problem import Method

METHODS: dict[str, Method] = {
    "constant": interpolation.constant,
    "nearest": interpolation.nearest,
    "linear": interpolation.linear,
    "kriging": kriging.kriging,
    "ridge": ridge.ridge,
    "ridge+residuals": ridge.ridge_residuals,
    "perceptron": perceptron.perceptron_published,
    "perceptron+stopping": perceptron.perceptron_early_stopping,
    "perceptron+poisson": perceptron.perceptron_poisson,
    "neighbourhood": neighbourhood.neighbourhood,
    "coordinates": coordinates.coordinates,
    "graph": graph.graph,
    "paper": histex.paper,
    "paper-no-histology": histex.paper_no_histology,
    "paper-no-attention": histex.paper_no_attention,
    "paper-no-enhancement": histex.paper_no_enhancement,
    "sphistex": histex.sphistex,
}
# All but those that leave out a part of the published model.
DEFAULT: tuple[str, ...] = tuple(name for name in METHODS if not name.startswith("paper-"))

# What of a published method is run on a CPU, where all of it would take many hours.
CUT_ON_CPU: dict[str, str] = {
    name: histex.ON_CPU if name.startswith("paper") else perceptron.ON_CPU
    for name in METHODS
    if name.startswith("paper") or name in ("perceptron", "perceptron+stopping")
}

__all__ = ["CUT_ON_CPU", "DEFAULT", "METHODS"]
