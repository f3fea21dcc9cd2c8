"""The latent map of a result, on disk block by block: what the counts of every gene can be read from."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations.transformations import BaseTransformation

from sphistex._store import attach, move_into_store, record, staging_path, write_store
from sphistex.nn import SuperResolver
from sphistex.nn.context import Window
from sphistex.nn.prediction import Mapper
from sphistex.settings import settings
from sphistex.tl._by_block import by_block
from sphistex.tl._chunks import ChunkRecord

# Side of a chunk in superpixels. Blocks of prediction are multiples of it, so that none is written twice.
CHUNK = 32
_LARGEST = float(np.finfo(np.float16).max)


def add_latent_map(
    sdata: SpatialData,
    name: str,
    mapper: Mapper,
    transformations: dict[str, BaseTransformation],
    *,
    tag: str,
    on_block: Callable[[int], None],
) -> None:
    """Make the latent map as ``sdata.images[name]``: float16, (n_models * d_latent, y, x), one pixel per superpixel.

    It is written block by block into a store of its own, which then becomes part of the store of ``sdata``, or stays
    in the cache folder where there is none.

    Parameters
    ----------
    sdata
        The section.
    name
        Name of the element; one of that name is replaced.
    mapper
        Makes the latent map of a block.
    transformations
        From superpixels of the whole grid to the coordinate systems of the image.
    tag
        What tells this map from those of other models and sections.
    on_block
        Called after every block with the number of its superpixels.
    """
    home = Path(settings.cache_dir) / "latent" / f"{name}-{tag}.zarr"
    work = staging_path(sdata.path, f"images-{name}") if sdata.is_backed() else home.with_name(f"{home.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _fill(_create(work, name, mapper, transformations, beside=sdata.path), mapper, on_block)
        # before the map changes: until the result is complete, the tags of its parts differ, and it is not read
        record(sdata, name, {"tag": tag})
        if sdata.is_backed():
            home = Path(sdata.path)
            move_into_store(work, home, "images", name)
        else:
            shutil.rmtree(home, ignore_errors=True)
            os.rename(work, home)
    except OSError as error:
        message = f"the latent map could not be written to {work}; nothing else was changed: {error.strerror or error}"
        raise OSError(error.errno, message) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    attach(sdata, "images", name, read_zarr(home, selection=("images",)).images[name])


def fingerprint(model: SuperResolver, *others: str) -> str:
    """What tells the maps of a model from those of others, and of other sections, which ``others`` tell apart."""
    found = hashlib.blake2b("\n".join([str(model.info.get("seed")), *others]).encode(), digest_size=8)
    found.update(np.ascontiguousarray(model.image_share).data)
    for name, value in model.module.state_dict().items():
        found.update(name.encode())
        found.update(np.ascontiguousarray(value.cpu().numpy()).data)
    return found.hexdigest()


def _create(
    work: Path,
    name: str,
    mapper: Mapper,
    transformations: dict[str, BaseTransformation],
    *,
    beside: Path | None,
) -> ChunkRecord:
    """An empty map in a store of its own, and the record of its chunks, by which it is noticed if one is lost."""
    n_values = mapper.reader.weight.shape[0] * mapper.reader.weight.shape[1]
    shape, chunks = (n_values, *mapper.features.mask.shape), (n_values, CHUNK, CHUNK)
    empty = da.zeros(shape, dtype=np.float16, chunks=chunks)
    work.parent.mkdir(parents=True, exist_ok=True)
    write_store(
        work,
        "images",
        name,
        Image2DModel.parse(empty, dims=("c", "y", "x"), transformations=transformations),
        beside=beside,
    )
    made = ChunkRecord(work / "images" / name)
    made.create()
    return made


def _fill(made: ChunkRecord, mapper: Mapper, on_block: Callable[[int], None]) -> None:
    for window, latent in by_block(mapper, _halved):
        inside = mapper.features.mask[window]
        values = np.zeros((made.array.shape[0], *inside.shape), dtype=np.float16)
        values[:, inside] = latent
        made.array[(slice(None), *window)] = values
        rows, columns = (range(part.start // CHUNK, -(-part.stop // CHUNK)) for part in window)
        for place in product(rows, columns):
            made.add(place, made.fingerprint(place))
        on_block(latent.shape[1])


def _halved(mapper: Mapper, window: Window) -> NDArray[np.float16]:
    """Latent map of a block's tissue in half precision, (n_models * d_latent, n_superpixels)."""
    latent = mapper.latent(window).clamp(-_LARGEST, _LARGEST).half()
    return latent.transpose(1, 2).flatten(0, 1).cpu().numpy()
