"""Accuracy of predicted maps against a high-resolution truth."""

from sphistex.metrics.accuracy import coarsen, noise_ceiling, pearson, pearson_by_scale
from sphistex.metrics.thinning import thin_counts

__all__ = ["coarsen", "noise_ceiling", "pearson", "pearson_by_scale", "thin_counts"]
