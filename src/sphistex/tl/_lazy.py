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
import numpy as np
import torch
from anndata._io.specs.registry import _REGISTRY, IOSpec
from anndata.compat import H5Group, ZarrGroup
from dask.base import tokenize
from numpy.typing import NDArray

from sphistex.nn import FeatureMap
from sphistex.nn.genes import GeneReader
from sphistex.tl._latent import CHUNK

# Columns of superpixels, and numbers of superpixels and genes, that are computed at once.
_COLUMNS = 16 * CHUNK
_NUMBERS = 8_000_000


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

    def take(self, genes: NDArray[np.intp]) -> Counts:
        """Those of some genes."""
        return Counts(self.latent, self.reader.take(genes), tokenize(self.tag, genes))


class LazyCounts(da.Array):
    """Counts of all superpixels and genes of a result (n_superpixels, n_genes), as a dask array.

    What is cut out of it, or made of it, is a usual dask array.
    """

    counts: Counts

    @classmethod
    def of(cls, counts: Counts) -> LazyCounts:
        """Those that ``counts`` reads."""
        array = _array(counts)
        self = cls(array.dask, array.name, array.chunks, meta=array)
        self.counts = counts
        return self

    def __getitem__(self, index: Any) -> da.Array:
        """Only what is asked for is computed: without this, whole chunks of genes would be."""
        rows, genes = index if isinstance(index, tuple) and len(index) == 2 else (index, slice(None))
        chosen = np.arange(self.shape[1])[np.asarray(genes) if isinstance(genes, list) else genes]
        if rows is Ellipsis or not np.size(chosen) or np.array_equal(chosen, np.arange(self.shape[1])):
            return super().__getitem__(index)
        some = _array(self.counts.take(np.atleast_1d(chosen)))
        return some[rows] if np.ndim(chosen) else some[rows][..., 0]

    def copy(self) -> LazyCounts:
        """The same; a copy of the whole table stays as lazy as the table."""
        return LazyCounts.of(self.counts)


def _array(counts: Counts) -> da.Array:
    """A dask array of blocks of superpixels and genes."""
    # inside of partial, dask does not look for arrays to compute beforehand
    return da.map_blocks(
        partial(_block, counts),
        chunks=(counts.sizes, tuple(part.stop - part.start for part in counts.parts)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
        name=f"counts-{tokenize(counts.tag)}",
    )


def _block(counts: Counts, block_id: tuple[int, int] = (0, 0)) -> NDArray[np.float32]:
    strip, part = block_id
    return counts.of(strip, counts.parts[part])


def _now(values: Any) -> NDArray[Any]:
    """An array in memory, in this thread: a task of dask must not wait for other tasks."""
    return values.compute(scheduler="synchronous") if isinstance(values, da.Array) else np.asarray(values)


@_REGISTRY.register_write(H5Group, LazyCounts, IOSpec("array", "0.2.0"))
@_REGISTRY.register_write(ZarrGroup, LazyCounts, IOSpec("array", "0.2.0"))
def _write(
    group: Any, key: str, values: LazyCounts, *, _writer: Any, dataset_kwargs: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Leave ``X`` of a table in a SpatialData store empty; a table by itself gets all its counts."""
    in_store = key.split("/")[-1] == "X" and group.name.split("/")[:2] == ["", "tables"]
    _writer.write_elem(group, key, None if in_store else _array(values.counts), dataset_kwargs=dataset_kwargs)
