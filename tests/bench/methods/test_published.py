"""On a GPU the published methods are run as published."""

from __future__ import annotations

from dataclasses import replace

from sphistex.bench.methods import histex, perceptron
from sphistex.bench.problem import Problem
from sphistex.nn import PRESETS


def test_on_a_gpu_nothing_is_cut_short(small: Problem) -> None:
    on_gpu = replace(small, device="cuda")
    assert histex._published(on_gpu) == PRESETS["paper"]
    assert perceptron._published(on_gpu).epochs == 400


def test_on_a_cpu_training_is_shorter(small: Problem) -> None:
    assert histex._published(small).epochs < 10
    assert perceptron._published(small).epochs < 100
