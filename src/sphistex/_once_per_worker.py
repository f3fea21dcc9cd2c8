"""Something large that all tasks need, sent to each worker of a cluster once and unpacked there once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import cloudpickle
from distributed import Client, WorkerPlugin, get_worker


@contextmanager
def once_per_worker(client: Client, value: Any) -> Iterator[Callable[[], Any]]:
    """A function that gives ``value`` inside of a task, as long as the context lasts.

    Workers that join later, or in the place of one that died, have it as well. It is unpacked by the first task that
    asks for it, as loading a model may take longer than a worker may be silent for.
    """
    name = f"sphistex-{uuid4().hex}"
    client.register_plugin(_Parcel(name, cloudpickle.dumps(value)))
    try:
        yield partial(_unpacked, name)
    finally:
        client.unregister_worker_plugin(name)


class _Parcel(WorkerPlugin):
    def __init__(self, name: str, packed: bytes) -> None:
        self.name, self._packed = name, packed

    def setup(self, worker: Any) -> None:
        self._lock = threading.Lock()
        self._value: list[Any] = []

    def value(self) -> Any:
        with self._lock:
            if not self._value:
                self._value.append(cloudpickle.loads(self._packed))
            return self._value[0]


def _unpacked(name: str) -> Any:
    parcel: Any = get_worker().plugins[name]
    return parcel.value()
