"""Super-resolved spatial gene expression from H&E images and Visium spots."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sphistex.settings import settings

if TYPE_CHECKING:
    from sphistex import bench, datasets, encoders, io, metrics, nn, pl, pp, tl
    from sphistex.bags import Bags
    from sphistex.grid import Grid

    __version__: str

__all__ = ["Bags", "Grid", "bench", "datasets", "encoders", "io", "metrics", "nn", "pl", "pp", "settings", "tl"]

_SUBMODULES = frozenset({"bench", "datasets", "encoders", "io", "metrics", "nn", "pl", "pp", "tl"})
_CLASSES = {"Bags": "sphistex.bags", "Grid": "sphistex.grid"}


def __getattr__(name: str) -> Any:
    # Torch and SpatialData take seconds to import: only what is used is loaded, when it is used (PEP 562).
    if name in _SUBMODULES:
        return import_module(f"sphistex.{name}")
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("sphistex")
    raise AttributeError(f"module 'sphistex' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
