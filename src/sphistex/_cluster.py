"""A dask cluster, if the user has one: its client, and work handed to its workers a few pieces at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Client

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def active_client() -> Client | None:
    """The ``dask.distributed`` client of this process; None without one, and inside of a task, which is on a worker.

    Examples
    --------
    >>> active_client() is None
    True
    """
    distributed: Any = sys.modules.get("distributed")
    if distributed is None:  # nobody can have made a client
        return None
    try:
        distributed.get_worker()
    except ValueError:
        pass
    else:  # a task that waits for other tasks can block its cluster
        return None
    try:
        return distributed.client.default_client()
    except ValueError:
        return None


def bounded_map(
    client: Client, function: Callable[[_Item], _Result], items: Iterable[_Item], *, in_flight: int
) -> Iterator[tuple[_Item, _Result]]:
    """Items with what the function makes of them on the workers, in the order in which they are ready.

    No more than ``in_flight`` of them are with the cluster at once. What a worker that dies was at is done again by
    another one; ``function`` may therefore run twice on an item, but each item comes out once. When the function
    raises, or the iterator is closed, what is still waiting is cancelled.

    Parameters
    ----------
    client
        Client of the cluster.
    function
        Is sent along with every item, and so should be small.
    items
        What to call it with, drawn only when there is room.
    in_flight
        Items sent to the cluster and not yet returned.
    """
    import dask
    from distributed import as_completed

    waiting = iter(items)
    sent: dict[Any, _Item] = {}
    running = as_completed(loop=client.loop)

    def send() -> None:
        for item in islice(waiting, 1):
            # Pixels are no graph that was made too large by mistake, of which dask would warn each time.
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GiB"}):
                future = client.submit(function, item, pure=False)
            sent[future] = item
            running.add(future)

    try:
        for _ in range(in_flight):
            send()
        for future in running:
            result = future.result()
            item = sent.pop(future)
            send()
            yield item, result
    finally:
        if sent:
            client.cancel(list(sent), force=True)
