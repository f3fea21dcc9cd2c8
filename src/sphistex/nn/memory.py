"""Out of memory on the device: half as much at once, and on with it. And memory of the CPU that is used again."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_Result = TypeVar("_Result")

# Options of glibc's allocator, and the largest values that it sets them to by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL_TRIM, _USUAL_MMAP = 2**26, 2**25


class Portions:
    """How many bags are computed at once; halved for good, with one warning, when there is no memory for them.

    Parameters
    ----------
    at_once
        Bags to begin with.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._warned = False

    def of(self, bags: Tensor, compute: Callable[[Sequence[Tensor]], _Result]) -> _Result:
        """What ``compute`` makes of bags in portions; it is called anew with smaller ones after each halving.

        Parameters
        ----------
        bags
            Their numbers (..., n), on the device that they are computed on.
        compute
            Gets all portions (..., n_portion), in order.

        Raises
        ------
        MemoryError
            If there is no memory for one bag.
        """
        while True:
            try:
                return compute(bags.split(self.at_once, dim=-1))
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                tried = min(self.at_once, bags.shape[-1])
                if tried <= 1:
                    raise MemoryError(
                        f"there is no memory for a single bag of superpixels on {bags.device}: fit fewer genes, fewer "
                        "models (n_models) or a smaller network (d, hidden), or use a device with more memory"
                    ) from error
            # here the error, and with it all that the failed attempt held, is gone
            self._halve(tried, bags.device)

    def _halve(self, tried: int, device: torch.device) -> None:
        self.at_once = -(-tried // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"no memory on {device} for {tried} bags at once: they are halved, as often as is needed. The result "
                "is the same, but slower; a smaller batch_size or fewer genes_per_step avoids it",
                stacklevel=2,
            )


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the next step have the memory that the last one has freed, where the system's allocator is glibc's.

    By default large blocks go back to the system, which clears every page of them before it gives them out again: a
    tenth to a sixth of the time of training on a CPU. Afterwards all that is free is given back.
    """
    allocator: Any = None
    with suppress(TypeError, OSError):
        allocator = ctypes.CDLL(None)
    if not hasattr(allocator, "mallopt"):
        yield
        return
    # older versions take no larger threshold than the usual one
    allocator.mallopt(_MMAP_THRESHOLD, 2**30) or allocator.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
    allocator.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        allocator.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
        allocator.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        allocator.malloc_trim(0)
