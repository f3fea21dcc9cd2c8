"""Tools: superpixel features, fitting, prediction, and how far to trust it."""

from sphistex.nn import FitParameters, SuperResolver
from sphistex.tl.features import superpixel_features
from sphistex.tl.fit import fit
from sphistex.tl.genes import materialise, open_genes, trusted_scale
from sphistex.tl.intervals import confidence
from sphistex.tl.lattice_features import lattice_features
from sphistex.tl.predict import predict
from sphistex.tl.super_resolve import super_resolve
from sphistex.tl.validate import validate

__all__ = [
    "FitParameters",
    "SuperResolver",
    "confidence",
    "fit",
    "lattice_features",
    "materialise",
    "open_genes",
    "predict",
    "super_resolve",
    "superpixel_features",
    "trusted_scale",
    "validate",
]
