"""Which chunks of a map are on disk, and whether they still are what was written."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import zarr
from spatialdata import get_dask_backing_files
from xarray import DataArray

# Side of a chunk of a feature map in superpixels: what is read and written at once, and redone after an interruption.
CHUNK = 64
_DONE = "done.txt"
# Row and column of the chunk, in chunks.
Place: TypeAlias = tuple[int, int]


class Fingerprint(NamedTuple):
    """Size in bytes and checksum of a chunk's file; zeros of a chunk that has no file, since it holds only zeros."""

    size: int
    crc: int


class ChunkRecord:
    """The finished chunks of a map: a line for each in a file beside them, which thus goes where they go.

    A missing chunk of a Zarr array is no error, but reads as zeros; hence this record.

    Parameters
    ----------
    element
        Folder of the map, which holds one array.
    """

    def __init__(self, element: Path) -> None:
        name, self.array = next(iter(zarr.open_group(element, mode="r+", use_consolidated=False).arrays()))
        self._folder = Path(element) / name
        self._path = self._folder / _DONE

    @staticmethod
    def exists(element: Path) -> bool:
        """Whether there is a map with a record; a copy made by another library has none."""
        return any(Path(element).glob(f"*/{_DONE}"))

    def create(self) -> None:
        """An empty record."""
        self._path.touch()

    def add(self, place: Place, fingerprint: Fingerprint) -> None:
        """Note a chunk as finished, in a single write, so that lines are whole also after a kill."""
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{place[0]} {place[1]} {fingerprint.size} {fingerprint.crc}\n".encode())

    def known(self) -> dict[Place, Fingerprint]:
        """Finished chunks, as they were when they were last written."""
        rows = [line.split() for line in self._path.read_text().splitlines()]
        whole = [[int(field) for field in row] for row in rows if len(row) == 4 and all(map(str.isdigit, row))]
        return {(row, column): Fingerprint(size, crc) for row, column, size, crc in whole}

    def intact(self) -> set[Place]:
        """Finished chunks that are on disk as they were written."""
        return {place for place, found in self.known().items() if self.fingerprint(place) == found}

    def fingerprint(self, place: Place) -> Fingerprint:
        """What a chunk on disk is now."""
        try:
            content = self.file(place).read_bytes()
        except FileNotFoundError:
            return Fingerprint(0, 0)
        return Fingerprint(len(content), zlib.crc32(content))

    def file(self, place: Place) -> Path:
        """The file of a chunk."""
        return self._folder / self.array.metadata.encode_chunk_key((0, *place))


def gone(lazy: DataArray) -> Path | None:
    """The folder that a lazy map is read from, if it is not there any more: all of the map would be read as zeros."""
    folder = _folder(lazy)
    return None if folder is None or folder.exists() else folder


def damaged(lazy: DataArray) -> list[Path]:
    """Files of a lazy map that are lost or not what was written: they would be read as zeros, or as nonsense."""
    if (folder := gone(lazy)) is not None:
        return [folder]
    if (folder := _folder(lazy)) is None or not ChunkRecord.exists(folder):
        return []
    record = ChunkRecord(folder)
    return [record.file(place) for place in sorted(record.known().keys() - record.intact())]


def _folder(lazy: DataArray) -> Path | None:
    """Where on this machine a map is read from; None of one in memory, or somewhere else."""
    folders = {Path(file) for file in get_dask_backing_files(lazy)}
    return folders.pop() if len(folders) == 1 and all(map(Path.is_absolute, folders)) else None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of an error in writing what it means for the user."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"the feature map could not be written to {path}: {error.strerror or error}. Nothing else was changed; "
            "make room or give permission, and the same call goes on where it stopped",
        ) from error
