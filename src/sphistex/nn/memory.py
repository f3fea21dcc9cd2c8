"""Out of memory on the device: half as much at once, and on with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_Result = TypeVar("_Result")


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
