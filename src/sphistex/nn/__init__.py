"""The computing core: torch and plain arrays only, nothing of SpatialData."""

from sphistex.nn.attention import BCA, CrossAttention
from sphistex.nn.context import FeatureMap
from sphistex.nn.histex import HISTEX
from sphistex.nn.inputs import Inputs, Spots
from sphistex.nn.parameters import PRESETS, FitParameters, parameters
from sphistex.nn.resolver import SuperResolver

__all__ = [
    "BCA",
    "HISTEX",
    "PRESETS",
    "CrossAttention",
    "FeatureMap",
    "FitParameters",
    "Inputs",
    "Spots",
    "SuperResolver",
    "parameters",
]
