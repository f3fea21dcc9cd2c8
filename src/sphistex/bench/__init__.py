"""Benchmarks: any methods on any sections, with the same spots, features and genes."""

from sphistex.bench.problem import Method, Problem
from sphistex.bench.runner import run

__all__ = ["Method", "Problem", "run"]
