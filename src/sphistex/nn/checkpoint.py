"""What a long computation goes on from when it was interrupted."""

from __future__ import annotations

import os
import pickle
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

# Writing may take this share of the time.
_SHARE = 0.05


class Checkpoint:
    """A file that holds the last state, whole at any time.

    It is a convenience: where it cannot be written, or read, there is a warning, and the work itself goes on.

    Parameters
    ----------
    path
        The file; its folder is made. None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._due = 0.0
        self._warned = False

    def load(self) -> dict[str, Any] | None:
        """The state that was kept last, on the CPU; None if there is none."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with ZipFile(self.path) as file:  # torch does not look at the checksums that it writes
                if (damaged := file.testzip()) is not None:
                    raise OSError(f"{damaged} is not what was written")
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, BadZipFile, pickle.UnpicklingError) as error:
            warnings.warn(f"the checkpoint {self.path} cannot be read, training starts anew: {error}", stacklevel=2)
            return None
        return state

    def keep(self, state: dict[str, Any]) -> None:
        """Write a state of tensors and plain values, unless too much of the time would go into writing."""
        if self.path is None or (started := time.monotonic()) < self._due:
            return
        unready = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, unready)
            os.replace(unready, self.path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError of a full disk
            with suppress(OSError):
                unready.unlink()
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"no checkpoint can be written to {self.path}: {error}. Training goes on, but starts anew if it is "
                    "interrupted",
                    stacklevel=2,
                )
        now = time.monotonic()
        self._due = now + (now - started) / _SHARE
