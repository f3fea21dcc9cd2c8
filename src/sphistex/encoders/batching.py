"""As many tiles at once as the memory of an encoder's device holds."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sphistex.encoders.base import Encoder

# Pixels encoded at once, in tiles: what keeps the device busy.
_BATCH_PX = {"cpu": 2**20, "mps": 2**22, "cuda": 2**24}
# What an encoder keeps of a pixel while it works, generously, and the share of the free memory to fill with it.
_BYTES_PER_PX, _SHARE = 512, 0.5
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def batch_size(tile_size: int, device_type: str = "cpu", free_bytes: int | None = None) -> int:
    """Tiles at once that keep a device busy, but no more than its free memory holds, if that is known.

    Examples
    --------
    >>> batch_size(224, "cuda", free_bytes=64 * 2**30), batch_size(224, "cuda", free_bytes=2 * 2**30)
    (334, 41)
    """
    pixels = _BATCH_PX.get(device_type, _BATCH_PX["cpu"])
    if free_bytes is not None:
        pixels = min(pixels, int(_SHARE * free_bytes) // _BYTES_PER_PX)
    return max(1, pixels // tile_size**2)


def check_batch_size(size: int | None) -> None:
    """Raise a ValueError for what is no number of tiles; None stands for a size that suits the device."""
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"batch_size={size!r} must be a whole number of tiles, at least 1, or None")


class Batches:
    """An encoder that takes any number of tiles and is given a few at a time.

    Where they do not fit into the memory of its device, it is given half as many from then on, with a warning.

    Parameters
    ----------
    encoder
        The encoder.
    size
        Tiles at once; by default as many as suit its device.
    """

    def __init__(self, encoder: Encoder, size: int | None = None) -> None:
        self.encoder = encoder
        self.size = size or batch_size(encoder.tile_size, *_device(encoder))

    def __call__(self, tiles: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.floating]]:
        """Tokens (h / patch size, w / patch size, dim) of every tile (h, w, 3).

        Raises
        ------
        MemoryError
            If not even one tile fits.
        """
        encoded: list[NDArray[np.floating]] = []
        size = tried = min(self.size, len(tiles))
        while len(encoded) < len(tiles):
            batch = np.stack(tiles[len(encoded) : len(encoded) + size])
            tokens = self._fitting(batch)
            if tokens is not None:
                encoded.extend(tokens)
            elif len(batch) == 1:
                raise MemoryError(
                    f"encoder={self.encoder.name!r} ran out of memory on a single tile of {self.encoder.tile_size} px; "
                    "free memory on its device, or choose another device= or a smaller encoder"
                )
            else:
                size = len(batch) // 2
        if size < tried:
            warnings.warn(
                f"encoder={self.encoder.name!r} ran out of memory with {tried} tiles at once and gets {size} from now "
                f"on (batch_size={size} silences this warning)",
                UserWarning,
                stacklevel=2,
            )
            self.size = size
        return encoded

    def _fitting(self, batch: NDArray[np.uint8]) -> NDArray[np.floating] | None:
        """Tokens of a batch, or None if it does not fit into memory."""
        try:
            return self.encoder(batch)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        # Only here, where the error no longer holds on to what was computed before it.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _is_out_of_memory(error: Exception) -> bool:
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(
        words in message for words in _OUT_OF_MEMORY
    )


def _device(encoder: Encoder) -> tuple[str, int | None]:
    """The type of an encoder's device, and how many bytes are free there, if that can be asked."""
    device = getattr(encoder, "device", None)
    if not isinstance(device, torch.device):
        return "cpu", None
    return device.type, torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
