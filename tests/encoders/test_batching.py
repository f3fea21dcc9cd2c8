"""Batches fit into the memory of the device, and what an encoder gives does not depend on them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from sphistex.encoders.adapters import CallableEncoder
from sphistex.encoders.batching import Batches, batch_size, check_batch_size

TILES = list(np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8))


class LimitedMemory:
    """Mean colours of patches, of no more than ``room`` tiles at once."""

    tile_size, halo_px = 64, 0

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        if len(tiles) > self.room:
            raise self.error
        return tiles.reshape(len(tiles), 4, 16, 4, 16, 3).mean((2, 4))


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
def test_out_of_memory_halves_the_batch_with_one_warning(error: Exception) -> None:
    expected = LimitedMemory(99, error)(np.stack(TILES))
    batches = Batches(CallableEncoder(LimitedMemory(3, error)), 64)
    with pytest.warns(UserWarning, match="with 11 tiles at once and gets 2 from now on") as caught:
        np.testing.assert_array_equal(batches(TILES), expected)
    assert sum("tiles at once" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(batches(TILES), expected)


def test_a_tile_that_does_not_fit_is_an_error() -> None:
    encoder = CallableEncoder(LimitedMemory(1, MemoryError()))
    encoder._function.room = 0  # type: ignore[attr-defined]
    with pytest.raises(MemoryError, match=r"encoder='LimitedMemory'.*a single tile of 64 px.*device="):
        Batches(encoder, 8)(TILES)


def test_other_errors_are_not_taken_for_it() -> None:
    encoder = CallableEncoder(LimitedMemory(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1"):
        Batches(encoder, 8)(TILES)


def test_the_batch_follows_the_free_memory_up_to_what_keeps_the_device_busy() -> None:
    sizes = [batch_size(224, "cuda", free_bytes) for free_bytes in (0, 2**30, 2**31, 2**34, 2**40)]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[2] == pytest.approx(2 * sizes[1], abs=1)
    assert sizes[3] == sizes[4] == batch_size(224, "cuda")
    assert batch_size(1216, "cpu") == 1


@pytest.mark.parametrize("size", [0, -3, 2.5, "many", True])
def test_what_is_no_number_of_tiles_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=f"batch_size={size!r} must be a whole number of tiles"):
        check_batch_size(size)
    check_batch_size(None)
    check_batch_size(np.int64(4))  # type: ignore[arg-type]
