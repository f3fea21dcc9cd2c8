"""Accuracy of predicted maps against a high-resolution truth, and of what is said of their certainty."""

from sphistex.metrics.accuracy import coarsen, correlation_by_scale, noise_ceiling, pearson, spearman
from sphistex.metrics.agreement import Agreement, agreement
from sphistex.metrics.artefacts import border_score, spot_error
from sphistex.metrics.concordance import concordance
from sphistex.metrics.coverage import coverage
from sphistex.metrics.explained import explained
from sphistex.metrics.lattice import from_tables
from sphistex.metrics.published import published
from sphistex.metrics.thinning import thin_counts

__all__ = [
    "Agreement",
    "agreement",
    "border_score",
    "coarsen",
    "concordance",
    "correlation_by_scale",
    "coverage",
    "explained",
    "from_tables",
    "noise_ceiling",
    "pearson",
    "published",
    "spearman",
    "spot_error",
    "thin_counts",
]
