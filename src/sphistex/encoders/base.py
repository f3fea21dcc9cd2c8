"""What an encoder is: a batch of RGB tiles in, a dense block of tokens out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

SUPERPIXEL_UM = 8.0


@runtime_checkable
class Encoder(Protocol):
    """Protocol of an encoder of histology tiles.

    One that computes with PyTorch may also say on which ``device``, and have a method ``on(device)`` that returns a
    copy on another one, so that all GPUs of a machine are used. On a CPU, such an encoder is called by several threads
    at once, each of which computes by itself.

    Attributes
    ----------
    name
        Name for records and messages.
    mpp
        Microns per pixel of the tiles it takes.
    patch_size
        Pixels per token; ``patch_size * mpp`` is the side of a superpixel in µm.
    dim
        Length of a token.
    tile_size
        Side in pixels of the tiles it is given, halo included.
    halo_px
        Border of a tile, in pixels, whose tokens only serve as surroundings and are dropped.
    revision
        Which weights: hub commit, sha256 of the file, or package version.
    """

    name: str
    mpp: float
    patch_size: int
    dim: int
    tile_size: int
    halo_px: int
    revision: str

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.floating]:
        """Tokens (n, h / patch_size, w / patch_size, dim) of RGB tiles (n, h, w, 3)."""
        ...


def resolve_device(device: str = "auto") -> torch.device:
    """The device to compute on; ``"auto"`` is the first there is of CUDA, MPS and CPU."""
    if device != "auto":
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f'device={device!r} must be "auto", "cpu", "mps", "cuda" or "cuda:<number>"') from error
        _check_there(found)
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _check_there(device: torch.device) -> None:
    """Refuse a GPU that this machine does not have, or PyTorch does not find."""
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise ValueError(
            f'device="{device}": PyTorch {torch.__version__} finds {n_gpus} CUDA GPUs here; choose another device, or '
            '"auto" for what there is'
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device="mps": PyTorch finds none here; choose another device, or "auto" for what there is')


def to_device(tiles: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Tiles on a device, copied while it is still busy where it is a GPU."""
    pixels = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
    if device.type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


def to_host(tokens: torch.Tensor) -> NDArray[np.floating]:
    """Tokens as an array; from a GPU in float16, as they are kept, because that takes half the time."""
    if tokens.device.type == "cpu":
        return tokens.float().numpy()
    limit = torch.finfo(torch.float16).max
    tokens = torch.where(tokens.isinf(), tokens, tokens.clamp(-limit, limit)).half()
    host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=tokens.is_cuda)
    return host.copy_(tokens).numpy()


def autocast(device: torch.device) -> AbstractContextManager:
    """Mixed precision on a GPU (bfloat16 where it has it), full precision on the CPU."""
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if bfloat16 else torch.float16
    return torch.autocast(device.type, dtype=dtype, enabled=device.type != "cpu")
