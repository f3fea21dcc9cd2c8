"""Filling a feature map chunk by chunk, in threads of this machine or on the workers of a cluster."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import cloudpickle
import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from sphistex._cluster import active_client, bounded_map
from sphistex._readable import readable
from sphistex.encoders.base import Encoder
from sphistex.encoders.batching import Batches
from sphistex.encoders.side_by_side import alone, replicas, shares_the_cores
from sphistex.encoders.tiling import Block, Tiling
from sphistex.encoders.window import Window, read_pixels
from sphistex.grid import Grid
from sphistex.settings import settings
from sphistex.tl._chunks import CHUNK, ChunkRecord, Fingerprint, Place, explained

if TYPE_CHECKING:
    from distributed import Client

# Chunks that wait, for each encoder, to be encoded or to be written; and those that a cluster has, for each thread.
_PENDING, _PENDING_ON_CLUSTER = 3, 2
# A cluster may still be growing.
_FEWEST_ON_CLUSTER = 16
# An encoder on a worker is called by one thread at a time, while the others read and write, unless it shares the cores.
_ENCODING = threading.Lock()
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# Puts a chunk on the record of those that are finished.
_Note: TypeAlias = Callable[[Block, Fingerprint], None]


def fill(
    element: Path,
    image: da.Array,
    grid: Grid,
    tiling: Tiling,
    tissue: NDArray[np.bool_],
    *,
    batch_size: int | None = None,
    copies: Sequence[Encoder] | None = None,
) -> int:
    """Encode all chunks with tissue that are not on disk yet, or not as they were written; the number of them.

    Parameters
    ----------
    element
        Folder of the map.
    image
        The image (c, y, x).
    grid, tiling, tissue
        The superpixels, how they are encoded, and which of them are.
    batch_size
        Tiles at once; by default as many as suit the device.
    copies
        Encoders that share the chunks; by default one on every GPU that the device stands for, or one for every thread
        of the CPU.
    """
    element = element.absolute()  # workers may run in another folder
    record = ChunkRecord(element)
    intact = record.intact()
    blocks = [tiling.block(rows, columns, tissue) for rows, columns in product(*map(_spans, grid.shape))]
    todo = [block for block in blocks if block.tiles and _place(block) not in intact]
    if not todo:
        return 0
    job = _Job(element, tiling, batch_size, grid.mpp, image.shape, tissue)

    def note(block: Block, fingerprint: Fingerprint) -> None:
        with explained(element):
            record.add(_place(block), fingerprint)

    client = active_client()
    if client is None:
        finished = _in_threads(job, image, todo, note, copies or replicas(tiling.encoder))
    else:
        finished = _on_cluster(client, job, image, todo, note)
    total, left = (sum(len(block.tiles) for block in part) for part in (blocks, todo))
    with tqdm(
        total=total, initial=total - left, unit="tile", desc="features", disable=not settings.progress
    ) as progress:
        for block in finished:
            progress.update(len(block.tiles))
    return len(todo)


@dataclass(frozen=True)
class _Job:
    """What it takes to make any chunk of a map; it can be sent to another machine."""

    element: Path
    tiling: Tiling
    batch_size: int | None
    mpp: float
    image_shape: tuple[int, ...]
    tissue: NDArray[np.bool_]

    @cached_property
    def record(self) -> ChunkRecord:
        return ChunkRecord(self.element)

    @cached_property
    def batches(self) -> Batches:
        return Batches(self.tiling.encoder, self.batch_size)

    def window(self, block: Block) -> Window:
        return self.tiling.window(self.image_shape, self.mpp, block)

    def picture(self, block: Block, part: Any) -> NDArray[np.uint8]:
        """What the encoder sees of a chunk, from that part of the image."""
        window = self.window(block)
        rows, columns = window.inside
        where = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
        with readable(f"the image ({where})"):
            pixels = read_pixels(part)
        return window.resampled(pixels)

    def read(self, block: Block, image: Any) -> tuple[Block, NDArray[np.uint8]]:
        return block, self.picture(block, self.window(block).of_image(image))

    def encode(
        self, block: Block, picture: NDArray[np.uint8], batches: Batches
    ) -> tuple[Block, list[NDArray[np.floating]]]:
        with alone if shares_the_cores(batches.encoder) else nullcontext():
            return block, batches(self.tiling.cut(picture, block))

    def write(self, block: Block, encoded: list[NDArray[np.floating]]) -> Fingerprint:
        tokens = self.tiling.join(encoded, block, self.tissue)
        with explained(self.element):
            self.record.array[:, block.rows, block.columns] = tokens
            return self.record.fingerprint(_place(block))


# ------------------------------------------------------------------------------------------------- this machine


def _in_threads(
    job: _Job, image: da.Array, todo: list[Block], note: _Note, copies: Sequence[Encoder]
) -> Iterator[Block]:
    """Read ahead and write behind while the encoders, each in a thread of its own, take one chunk after the other."""
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(max(1, settings.n_workers)))
        lanes = cycle([(Batches(copy, job.batch_size), stack.enter_context(ThreadPoolExecutor(1))) for copy in copies])

        def encode(found: tuple[Block, NDArray[np.uint8]]) -> Future:
            batches, thread = next(lanes)
            return thread.submit(job.encode, *found, batches)

        def write(found: tuple[Block, list[NDArray[np.floating]]]) -> Block:
            note(found[0], job.write(*found))
            return found[0]

        pending = _PENDING * len(copies)
        pictures = _ahead(lambda block: threads.submit(job.read, block, image), todo, pending)
        encoded = _ahead(encode, pictures, len(copies))
        yield from _ahead(lambda found: threads.submit(write, found), encoded, pending)


def _ahead(submit: Callable[[_Item], Future[_Result]], items: Iterable[_Item], pending: int) -> Iterator[_Result]:
    """Results in the order of their items, of which so many are under way."""
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > pending:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# --------------------------------------------------------------------------------------------------- a cluster


def _on_cluster(client: Client, job: _Job, image: da.Array, todo: list[Block], note: _Note) -> Iterator[Block]:
    """Every worker reads, encodes and writes chunks by itself; chunks are files of their own."""
    from sphistex._once_per_worker import once_per_worker

    pending = max(_FEWEST_ON_CLUSTER, _PENDING_ON_CLUSTER * sum(client.nthreads().values()))
    pieces = ((block, _packed(job.window(block).of_image(image))) for block in todo)
    with once_per_worker(client, job) as unpacked_job:
        for (block, _), fingerprint in bounded_map(client, partial(_make, unpacked_job), pieces, in_flight=pending):
            note(block, fingerprint)
            yield block


def _make(unpacked_job: Callable[[], _Job], piece: tuple[Block, bytes]) -> Fingerprint:
    """A chunk from beginning to end, on a worker."""
    job, (block, packed) = unpacked_job(), piece
    picture = job.picture(block, pickle.loads(packed))
    with nullcontext() if shares_the_cores(job.tiling.encoder) else _ENCODING:
        _, encoded = job.encode(block, picture, job.batches)
    return job.write(block, encoded)


def _packed(part: da.Array) -> bytes:
    """What a worker makes the pixels from: how to read them or, where that is larger, as in memory, the pixels."""
    (part,) = dask.optimize(part)
    try:
        recipe = cloudpickle.dumps(part)
    except (TypeError, AttributeError, pickle.PicklingError):  # an open file
        recipe = None
    return recipe if recipe is not None and len(recipe) < part.nbytes else pickle.dumps(read_pixels(part))


def _spans(size: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]


def _place(block: Block) -> Place:
    return block.rows.start // CHUNK, block.columns.start // CHUNK
