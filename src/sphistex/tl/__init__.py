"""Tools: superpixel features, fitting, prediction."""

from sphistex.nn import FitParameters, SuperResolver
from sphistex.tl.features import superpixel_features
from sphistex.tl.fit import fit
from sphistex.tl.predict import predict
from sphistex.tl.super_resolve import super_resolve

__all__ = ["FitParameters", "SuperResolver", "fit", "predict", "super_resolve", "superpixel_features"]
