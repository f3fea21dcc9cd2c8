"""Data to try things on: simulated sections and cohorts with a known truth."""

from sphistex.datasets.cohort import simulate_cohort
from sphistex.datasets.simulate import simulate

__all__ = ["simulate", "simulate_cohort"]
