"""Counts of a result that are computed when they are asked for, gene by gene, from the latent map.

They stand in a table as a dask array. Asked for some genes, it computes those and no others; written as part of a
SpatialData store, it leaves ``X`` empty, since everything it is made of is in the store anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import dask.array as da
import h5py
import numpy as np
import torch
import zarr
from anndata._core.views import as_view
from anndata._io.specs.registry import _REGISTRY, IOSpec
from dask.base import tokenize
from numpy.typing import NDArray

from sphistex.nn import FeatureMap
from sphistex.nn.genes import GeneReader
from sphistex.tl._latent import CHUNK

# Columns of superpixels, and numbers of superpixels and genes, that are computed at once.
_COLUMNS = 16 * CHUNK
_NUMBERS = 8_000_000
# What is understood as an index; the rest is left to dask.
_INDICES = (int, np.integer, slice, list, np.ndarray)


@dataclass(frozen=True)
class Counts:
    """Counts of the tissue, row by row, read from its latent map.

    Parameters
    ----------
    latent
        Latent map on the whole grid (n_models * d_latent, rows, columns), with the tissue.
    reader
        Makes counts of it.
    tag
        What tells them from others.
    """

    latent: FeatureMap
    reader: GeneReader
    tag: str

    @cached_property
    def strips(self) -> list[slice]:
        """Rows of the grid that are read at once; those of a chunk of the map, where there is tissue."""
        rows = [slice(first, first + CHUNK) for first in range(0, len(self.latent.mask), CHUNK)]
        return [part for part in rows if self.latent.mask[part].any()]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Superpixels of each strip."""
        return tuple(int(self.latent.mask[rows].sum()) for rows in self.strips)

    @property
    def genes_at_once(self) -> int:
        """Genes of a strip whose counts take little memory."""
        return min(self.reader.n_genes, max(1, _NUMBERS // max(self.sizes)))

    @property
    def parts(self) -> list[slice]:
        """All genes, as many at once."""
        n_genes, width = self.reader.n_genes, self.genes_at_once
        return [slice(first, min(first + width, n_genes)) for first in range(0, n_genes, width)]

    def of(self, strip: int, genes: slice = slice(None)) -> NDArray[np.float32]:
        """Counts of some genes in a strip (n_superpixels, n_genes)."""
        mask, n_models = self.latent.mask, self.reader.weight.shape[0]
        rows = slice(self.strips[strip].start, min(self.strips[strip].stop, len(mask)))
        out = np.empty((int(mask[rows].sum()), len(range(self.reader.n_genes)[genes])), dtype=np.float32)
        place = mask[rows].ravel().cumsum().reshape(mask[rows].shape) - 1
        for first in range(0, mask.shape[1], _COLUMNS):
            window = rows, slice(first, min(first + _COLUMNS, mask.shape[1]))
            inside = mask[window]
            if inside.any():
                latent = torch.from_numpy(_now(self.latent.features[(slice(None), *window)])).flatten(1)
                if not inside.all():
                    latent = latent.index_select(1, torch.from_numpy(np.flatnonzero(inside)))
                latent = latent.unflatten(0, (n_models, -1)).transpose(1, 2)
                out[place[:, window[1]][inside]] = self.reader.counts(window, inside, latent, genes)
        return out

    def at(self, row: int, column: int) -> NDArray[np.float32]:
        """Counts of all genes (n_genes,) in one superpixel of the grid; only its chunk of the map is read."""
        window = slice(row, row + 1), slice(column, column + 1)
        latent = torch.from_numpy(_now(self.latent.features[(slice(None), *window)])).flatten(1)
        latent = latent.unflatten(0, (self.reader.weight.shape[0], -1)).transpose(1, 2)
        return self.reader.counts(window, np.ones((1, 1), dtype=bool), latent)[0]

    def take(self, genes: NDArray[np.intp]) -> Counts:
        """Those of some genes."""
        return Counts(self.latent, self.reader.take(genes), tokenize(self.tag, genes))


class LazyCounts(da.Array):
    """Counts of all genes of a result (n_superpixels, n_genes), as a dask array, of all superpixels or of some.

    Some genes that are cut out of it, and what is made of it, are a usual dask array.
    """

    counts: Counts
    rows: NDArray[np.intp] | None

    @classmethod
    def of(cls, counts: Counts, rows: NDArray[np.intp] | None = None) -> LazyCounts:
        """Those that ``counts`` reads, of some superpixels (n,) or of all."""
        array = _array(counts, rows)
        self = cls(array.dask, array.name, array.chunks, meta=array)
        self.counts, self.rows = counts, rows
        return self

    def __getitem__(self, index: Any) -> da.Array:
        """Only what is asked for is computed: without this, whole chunks of genes would be."""
        asked = index if isinstance(index, tuple) else (index,)
        if len(asked) > 2 or not all(isinstance(part, _INDICES) for part in asked):
            return super().__getitem__(index)
        row, gene = (
            np.arange(size)[np.asarray(part, dtype=None if len(part) else int) if isinstance(part, list) else part]
            for size, part in zip(self.shape, (*asked, slice(None)), strict=False)
        )
        lists = sum(isinstance(part, list | np.ndarray) for part in asked)
        if lists > 1 or not row.ndim or not np.size(gene):
            return super().__getitem__(index)
        everywhere = np.array_equal(row, np.arange(self.shape[0]))
        rows = self.rows if everywhere else row if self.rows is None else self.rows[row]
        if np.array_equal(gene, np.arange(self.shape[1])):
            return LazyCounts.of(self.counts, rows)
        some = _array(self.counts.take(np.atleast_1d(gene)), rows)
        return some if gene.ndim else some[:, 0]

    def copy(self) -> LazyCounts:
        """The same; a copy of the whole table stays as lazy as the table."""
        return LazyCounts.of(self.counts, self.rows)


@as_view.register(LazyCounts)
def _in_view(counts: LazyCounts, view_args: Any) -> LazyCounts:
    """A part of a table holds them as they are, so that a copy of the part is as lazy."""
    return counts


def _array(counts: Counts, rows: NDArray[np.intp] | None) -> da.Array:
    """A dask array of blocks of superpixels and genes."""
    # inside of partial, dask does not look for arrays to compute beforehand
    array = da.map_blocks(
        partial(_block, counts),
        chunks=(counts.sizes, tuple(part.stop - part.start for part in counts.parts)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
        name=f"counts-{tokenize(counts.tag)}",
    )
    return array if rows is None else array[rows]


def _block(counts: Counts, block_id: tuple[int, int] = (0, 0)) -> NDArray[np.float32]:
    strip, part = block_id
    return counts.of(strip, counts.parts[part])


def _now(values: Any) -> NDArray[Any]:
    """An array in memory, in this thread: a task of dask must not wait for other tasks."""
    return values.compute(scheduler="synchronous") if isinstance(values, da.Array) else np.asarray(values)


@_REGISTRY.register_write(h5py.Group, LazyCounts, IOSpec("array", "0.2.0"))
@_REGISTRY.register_write(zarr.Group, LazyCounts, IOSpec("array", "0.2.0"))
def _write(
    group: Any, key: str, values: LazyCounts, *, _writer: Any, dataset_kwargs: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Leave ``X`` of a whole table in a SpatialData store empty; a part, or a table by itself, gets its counts."""
    in_store = key.split("/")[-1] == "X" and group.name.split("/")[:2] == ["", "tables"]
    counts = None if in_store and values.rows is None else _array(values.counts, values.rows)
    _writer.write_elem(group, key, counts, dataset_kwargs=dataset_kwargs)
