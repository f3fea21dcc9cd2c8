"""Data to try things on: simulated sections with a known truth."""

from sphistex.datasets.simulate import simulate

__all__ = ["simulate"]
