"""Where a fit leaves what the same call can go on from when it was interrupted: checkpoints, then the fitted model."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from spatialdata import SpatialData

from sphistex._store import staging_path
from sphistex.nn import FitParameters, Inputs, SuperResolver
from sphistex.settings import settings

# Superpixels of each section whose features tell its feature map from others.
_SAMPLE = 16
# Letters of a tag, and days after which an interrupted fit is not expected to be resumed.
_TAG, _FORGOTTEN_DAYS = 16, 7


@dataclass(frozen=True)
class FitFolder:
    """A folder of one fit: only a call with the same sections, parameters and seed finds it again.

    It is a convenience: where it cannot be written, or read, there is a warning, and the work itself goes on.
    """

    path: Path

    @classmethod
    def of(
        cls,
        sdata: SpatialData,
        sections: Sequence[Inputs],
        genes: Sequence[str],
        parameters: FitParameters,
        *,
        encoder: dict[str, Any],
        seed: int,
        device: torch.device,
    ) -> FitFolder:
        """Beside the store of ``sdata``, or in the cache folder if it has none, or none beside which one can write."""
        plain = [list(genes), parameters.to_json(), encoder, seed, device.type, version("sphistex"), torch.__version__]
        found = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        for section in sections:
            for array in _content(section):
                found.update(np.ascontiguousarray(array).data)
        tag = found.hexdigest()[:_TAG]
        if sdata.is_backed() and os.access(Path(sdata.path).parent, os.W_OK):
            return cls(staging_path(sdata.path, f"fit-{tag}"))
        return cls(Path(settings.cache_dir) / "fits" / tag)

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.path / "training.pt"

    def model(self, device: torch.device) -> SuperResolver | None:
        """The model, if it has been fitted already."""
        if not self._model.exists():
            return None
        try:
            return SuperResolver.load(self._model, device=device)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            warnings.warn(f"the fitted model in {self._model} cannot be read, it is fitted anew: {error}", stacklevel=2)
            shutil.rmtree(self._model, ignore_errors=True)
            return None

    def keep(self, model: SuperResolver) -> None:
        """Keep the fitted model, whole or not at all."""
        unready = self.path / f"model.{os.getpid()}.new"
        try:
            model.save(unready)
            os.rename(unready, self._model)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unready, ignore_errors=True)
            if self._model.is_dir():  # another process has fitted the same meanwhile
                return
            warnings.warn(
                f"the fitted model cannot be kept in {self.path}: {error}. If what follows is interrupted, it is "
                "fitted again",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Remove all of it, when it is not needed any more, and what interrupted fits left here long ago."""
        shutil.rmtree(self.path, ignore_errors=True)
        tag = "[0-9a-f]" * _TAG
        for other in self.path.parent.glob(glob.escape(self.path.name[:-_TAG]) + tag):
            with suppress(OSError):  # another process may be removing it as well
                if time.time() - other.stat().st_mtime > _FORGOTTEN_DAYS * 86_400:
                    shutil.rmtree(other, ignore_errors=True)

    @property
    def _model(self) -> Path:
        return self.path / "model"


def _content(section: Inputs) -> Iterator[NDArray]:
    """All of a section that a fit depends on; of the features, which may be large, those of some places."""
    spots, weights = section.spots, section.bags.weights
    yield np.array([spots.pitch_um, section.bags.grid.pitch_um, section.bags.grid.mpp])
    yield from (spots.xy_um, spots.radius_um, spots.counts)
    yield from (weights.indptr, weights.indices, weights.data)
    yield np.packbits(section.features.mask)
    places = np.unique(weights.indices)
    yield section.features.gather(places[np.linspace(0, len(places) - 1, _SAMPLE).astype(int)])
