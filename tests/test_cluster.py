"""Work on a cluster of two processes: all of it comes back, once, whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from distributed import Client, LocalCluster

from sphistex._cluster import active_client, bounded_map
from sphistex._once_per_worker import once_per_worker

# The workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def square(number: int) -> int:
    return number * number


def die_once(flag: Path, number: int) -> int:
    if number == 3 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number: int) -> int:
    raise ValueError(f"not {number}")


def is_inside_without_client(_: int) -> bool:
    return active_client() is None


class Loaded:
    """Counts in a folder how often it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        (self.folder / f"{os.getpid()}-{len(list(self.folder.iterdir()))}").touch()


def folder_of(value: Any, number: int) -> Path:
    return value().folder


def test_the_active_client_is_found_except_by_a_task(client: Client) -> None:
    assert active_client() is client
    assert client.submit(is_inside_without_client, 0).result()


def test_results_come_with_their_items_and_few_are_under_way(client: Client) -> None:
    drawn = []

    def numbers() -> Iterator[int]:
        for number in range(30):
            drawn.append(number)
            yield number

    back = 0
    for number, result in bounded_map(client, square, numbers(), in_flight=4):
        assert result == number**2
        back += 1
        assert len(drawn) - back <= 4
    assert back == 30


def test_a_dying_worker_costs_nothing(client: Client, tmp_path: Path) -> None:
    found = list(bounded_map(client, partial(die_once, tmp_path / "flag"), range(12), in_flight=4))
    assert (tmp_path / "flag").exists()
    assert sorted(found) == [(number, number) for number in range(12)]


def test_an_error_on_a_worker_is_raised_here(client: Client) -> None:
    with pytest.raises(ValueError, match="not 0"):
        list(bounded_map(client, refuse, range(1), in_flight=2))


def test_a_value_is_unpacked_once_on_each_worker(client: Client, tmp_path: Path) -> None:
    with once_per_worker(client, Loaded(tmp_path)) as value:
        list(bounded_map(client, partial(folder_of, value), range(20), in_flight=4))
    loaded = [file.name.partition("-")[0] for file in tmp_path.iterdir()]
    assert 1 <= len(loaded) == len(set(loaded)) <= 2
