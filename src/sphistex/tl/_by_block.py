"""Blocks of a map, made here or, where there is a cluster, by its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

from sphistex._cluster import active_client, bounded_map
from sphistex.nn.context import Window
from sphistex.nn.prediction import Mapper

# Blocks for each thread of the cluster that are under way at once.
_IN_FLIGHT = 2
_Make = Callable[[Mapper, Window], NDArray[Any]]


def by_block(mapper: Mapper, make: _Make) -> Iterator[tuple[Window, NDArray[Any]]]:
    """Blocks of a section with tissue, and what ``make`` makes of each; on a cluster in any order."""
    windows = mapper.features.blocks()
    if (client := active_client()) is None:
        for window in windows:
            yield window, make(mapper, window)
        return
    from sphistex._once_per_worker import once_per_worker

    in_flight = _IN_FLIGHT * max(1, sum(client.nthreads().values()))
    with once_per_worker(client, mapper) as unpacked:
        yield from bounded_map(client, partial(_on_worker, make, unpacked), windows, in_flight=in_flight)


def counts(mapper: Mapper, window: Window) -> NDArray[np.float32]:
    """Counts of a block's tissue (n_superpixels, n_genes)."""
    out = np.empty((int(mapper.features.mask[window].sum()), mapper.reader.n_genes), dtype=np.float32)
    for genes, values in mapper.parts(window):
        out[:, genes] = values
    return out


def _on_worker(make: _Make, unpacked: Callable[[], Mapper], window: Window) -> NDArray[Any]:
    # features are read in this thread: a task that waits for others can block its cluster
    with dask.config.set(scheduler="synchronous"):
        return make(unpacked(), window)
