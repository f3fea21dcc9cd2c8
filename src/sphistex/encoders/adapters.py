"""Other people's models as encoders: any callable, and LazySlide's models with ``encode_image_dense``."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sphistex.encoders.base import SUPERPIXEL_UM, autocast, resolve_device, to_host


class CallableEncoder:
    """A function of tiles (n, h, w, 3) uint8 that returns tokens (n, h / patch, w / patch, dim).

    What the function has as attributes is used (``name``, ``mpp``, ``patch_size``, ``tile_size``, ``halo_px``,
    ``revision``); otherwise tiles of 224 px at 0.5 µm per pixel, patches of 16 px, a halo of 32 px, and the hash of
    its source code as revision.

    Raises
    ------
    ValueError
        If what it returns for an empty tile has not that shape.

    Examples
    --------
    >>> def colour(tiles):
    ...     n, h, w, _ = tiles.shape
    ...     return tiles.reshape(n, h // 16, 16, w // 16, 16, 3).mean((2, 4))
    >>> CallableEncoder(colour).dim
    3
    """

    def __init__(self, function: Callable[[NDArray[np.uint8]], ArrayLike]) -> None:
        self._function = function
        self.name = str(getattr(function, "name", getattr(function, "__name__", type(function).__name__)))
        self.patch_size = int(getattr(function, "patch_size", 16))
        self.mpp = float(getattr(function, "mpp", SUPERPIXEL_UM / self.patch_size))
        self.tile_size = int(getattr(function, "tile_size", 224 // self.patch_size * self.patch_size))
        self.halo_px = int(getattr(function, "halo_px", 2 * self.patch_size))
        self.revision = str(getattr(function, "revision", None) or _source_hash(function))
        self.dim = int(self(np.zeros((1, self.tile_size, self.tile_size, 3), np.uint8)).shape[-1])

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Tokens of tiles, their shape checked."""
        tokens = np.asarray(self._function(tiles), dtype=np.float32)
        expected = (len(tiles), tiles.shape[1] // self.patch_size, tiles.shape[2] // self.patch_size)
        if tokens.ndim != 4 or tokens.shape[:3] != expected:
            raise ValueError(
                f"encoder={self.name!r} returned tokens of shape {tokens.shape} for tiles of shape {tiles.shape}; with "
                f"patch_size={self.patch_size} it must be {(*expected, 'dim')}"
            )
        return tokens


class DenseEncoder:
    """A LazySlide model: ``encode_image_dense(image)`` gives all tokens of normalised images (n, 3, h, w).

    It may return an object with ``patch_tokens`` (n, tokens, dim), or an array whose first ``num_prefix_tokens``
    tokens (default 1) are no patches. ``get_transform()`` normalises a picture, ``to(device)`` moves the model.

    Raises
    ------
    ValueError
        If the model does not say its ``patch_size``, or gives another number of tokens than there are patches.
    """

    halo_px = 32

    def __init__(self, model: Any, *, device: str = "auto") -> None:
        self.name = str(getattr(model, "name", type(model).__name__))
        if getattr(model, "patch_size", None) is None:
            raise ValueError(f"encoder={self.name!r} has encode_image_dense, but no patch_size")
        self.device = resolve_device(device)
        self._model = model.to(self.device) if hasattr(model, "to") else model
        self._transform = model.get_transform()
        self.patch_size = int(np.ravel(model.patch_size)[0])
        self.mpp = SUPERPIXEL_UM / self.patch_size
        self.tile_size = int(np.ravel(getattr(model, "img_size", 224))[0])
        self.revision = str(getattr(model, "revision", None) or _source_hash(type(model)))
        self.dim = int(self(np.zeros((1, self.tile_size, self.tile_size, 3), np.uint8)).shape[-1])

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.floating]:
        """Tokens (n, h / patch, w / patch, dim) of RGB tiles (n, h, w, 3)."""
        rows, columns = (side // self.patch_size for side in tiles.shape[1:3])
        with torch.inference_mode(), autocast(self.device):
            images = torch.stack([self._transform(np.array(tile)) for tile in tiles]).to(self.device)
            tokens = self._model.encode_image_dense(images)
        if hasattr(tokens, "patch_tokens"):
            tokens = tokens.patch_tokens
        else:
            tokens = tokens[:, getattr(self._model, "num_prefix_tokens", 1) :]
        if tokens.shape[1] != rows * columns:
            raise ValueError(
                f"encoder={self.name!r} gave {tokens.shape[1]} tokens for tiles of {self.tile_size} px with patches of "
                f"{self.patch_size} px, which are {rows} × {columns}"
            )
        return to_host(torch.as_tensor(tokens)).reshape(len(tiles), rows, columns, -1)

    def on(self, device: str) -> DenseEncoder:
        """The same encoder on another device."""
        return DenseEncoder(copy.deepcopy(self._model), device=device)


def _source_hash(thing: Any) -> str:
    """Hash of the source code, so that the tokens of an edited function are not taken for those of the old one."""
    code = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):  # typed into a plain interpreter, or compiled
        return "unknown"
    return f"source:{hashlib.sha256(source.encode()).hexdigest()[:16]}"
