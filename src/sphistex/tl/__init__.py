"""Tools: superpixel features, fitting, prediction, how far to trust it, and what becomes of patients."""

from sphistex.nn import FitParameters, SuperResolver
from sphistex.tl.features import superpixel_features
from sphistex.tl.fit import fit
from sphistex.tl.fit_outcome import fit_outcome
from sphistex.tl.genes import materialise, open_genes, trusted_scale
from sphistex.tl.intervals import confidence
from sphistex.tl.outcome_model import OutcomeModel
from sphistex.tl.predict import predict
from sphistex.tl.super_resolve import super_resolve
from sphistex.tl.validate import validate

__all__ = [
    "FitParameters",
    "OutcomeModel",
    "SuperResolver",
    "confidence",
    "fit",
    "fit_outcome",
    "materialise",
    "open_genes",
    "predict",
    "super_resolve",
    "superpixel_features",
    "trusted_scale",
    "validate",
]
