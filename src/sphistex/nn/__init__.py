"""The computing core: torch and plain arrays only, nothing of SpatialData."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sphistex.nn.attention import BCA, CrossAttention
from sphistex.nn.context import FeatureMap
from sphistex.nn.histex import HISTEX
from sphistex.nn.parameters import PRESETS, FitParameters, parameters

if TYPE_CHECKING:
    from sphistex.nn.inputs import Inputs, Spots
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


def __getattr__(name: str) -> Any:
    # What handles spots needs SciPy and pandas. Networks and their training do not, and run where there is only torch.
    if name in ("Inputs", "Spots"):
        return getattr(import_module("sphistex.nn.inputs"), name)
    if name == "SuperResolver":
        return import_module("sphistex.nn.resolver").SuperResolver
    raise AttributeError(f"module 'sphistex.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
