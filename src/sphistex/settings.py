"""Settings that hold for a whole Python session: where to compute, where to keep files, what to print."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sphistex"


@dataclass
class Settings:
    """Defaults of arguments that a call leaves out.

    Parameters
    ----------
    device
        Where to compute: ``"auto"`` (the first there is of CUDA, MPS and CPU), ``"cpu"``, ``"mps"``, ``"cuda"`` or
        ``"cuda:<number>"``. Where no number is given, features are made on all GPUs.
    cache_dir
        Folder for files that can be made or downloaded again.
    progress
        Whether to show progress bars.
    n_workers
        Threads that read and prepare image tiles. Without a GPU, so many also encode them, but no more than there are
        cores; each takes about 0.5 GB.
    seed
        Seed of everything random.
    memory_gb
        Memory in GB for the large arrays of a prediction, beside that of the section, the model and the libraries. A
        table of counts that would take more than it (of more than 2,000 genes: half of it) is kept lazily, and the
        smaller it is, the smaller are the blocks in which a section is predicted.

    Raises
    ------
    AttributeError
        If a setting that does not exist is set.
    ValueError, TypeError
        If a setting gets a value it cannot have.

    Examples
    --------
    >>> import sphistex as sx
    >>> sx.settings.device
    'auto'
    >>> sx.settings.device = "gpu"
    Traceback (most recent call last):
    ValueError: settings.device='gpu': give "auto", "cpu", "mps", "cuda" or "cuda:<number>"
    """

    device: str = "auto"
    cache_dir: Path = field(default_factory=_default_cache_dir)
    progress: bool = True
    n_workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    seed: int = 0
    memory_gb: float = 4.0

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in (known := [entry.name for entry in fields(self)]):
            raise AttributeError(f"settings.{name} does not exist: there are {', '.join(known)}")
        super().__setattr__(name, _checked(name, value))


def _checked(name: str, value: Any) -> Any:
    """The value of a setting, or an error that says what it can be."""
    if name == "device" and not (isinstance(value, str) and _DEVICE.fullmatch(value)):
        raise ValueError(f'settings.device={value!r}: give "auto", "cpu", "mps", "cuda" or "cuda:<number>"')
    if name == "cache_dir":
        return Path(value).expanduser()
    if name == "progress" and not isinstance(value, bool):
        raise TypeError(f"settings.progress={value!r}: give True or False")
    if name in ("n_workers", "seed"):
        least = 1 if name == "n_workers" else 0
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"settings.{name}={value!r}: give a whole number of at least {least}")
    if name == "memory_gb" and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
        raise ValueError(f"settings.{name}={value!r}: give a number of GB above 0")
    return value


settings = Settings()
