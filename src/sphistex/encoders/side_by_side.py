"""Encoding side by side: on all GPUs of a machine, or in the threads of a CPU."""

from __future__ import annotations

import threading

import torch

from sphistex.encoders.base import Encoder
from sphistex.settings import settings


def replicas(encoder: Encoder) -> list[Encoder]:
    """One encoder for every thread that is to encode.

    If the device is just ``"cuda"``, these are the encoder and copies of it on the other GPUs of this machine; on a
    CPU, the encoder as many times as there are threads.
    """
    if shares_the_cores(encoder):
        return [encoder] * min(torch.get_num_threads(), settings.n_workers)
    if getattr(encoder, "device", None) != torch.device("cuda") or not hasattr(encoder, "on"):
        return [encoder]
    return [encoder, *(encoder.on(f"cuda:{number}") for number in range(1, torch.cuda.device_count()))]


def shares_the_cores(encoder: Encoder) -> bool:
    """Whether an encoder may be called by several threads at once, each ``alone``."""
    return getattr(encoder, "device", None) == torch.device("cpu") and hasattr(encoder, "on")


class _Alone:
    """PyTorch computes with this thread only, because the last bits of a product depend on how many there are."""

    def __init__(self) -> None:
        self._lock, self._n_inside, self._before = threading.Lock(), 0, 1

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:  # a thread that begins while others are inside has their number
                self._before = torch.get_num_threads()
            self._n_inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            torch.set_num_threads(self._before)


alone = _Alone()
