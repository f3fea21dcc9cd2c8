"""Where a feature map is made, and where it goes when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations.transformations import BaseTransformation

from sphistex._store import attach, move_into_store, staging_path, write_store
from sphistex.grid import Grid
from sphistex.settings import settings
from sphistex.tl._chunks import CHUNK, ChunkRecord, damaged, explained


def made_with(sdata: SpatialData, key: str) -> dict[str, Any] | None:
    """Parameters of the map that is there.

    They are kept in the element itself, so that they change in the same moment as the map; a copy of the store made
    by ``sdata.write`` has lost them, but kept the record in ``sdata.attrs``.
    """
    if key not in sdata.images:
        return None
    if sdata.is_backed() and (element := Path(sdata.path) / "images" / key).exists():
        own: Any = zarr.open_group(element, mode="r").attrs.get("sphistex")
        return own or recorded(sdata, key)
    return recorded(sdata, key)


def recorded(sdata: SpatialData, key: str) -> dict[str, Any] | None:
    """Parameters of a map as ``sdata.attrs`` has them."""
    return sdata.attrs.get("sphistex", {}).get(key)


def identity(params: dict[str, Any]) -> dict[str, Any]:
    """What makes two maps the same; a new version of the package is no reason to compute for hours again."""
    return {name: value for name, value in params.items() if name != "version"}


def work_path(
    sdata: SpatialData, key: str, params: dict[str, Any], transformations: dict[str, BaseTransformation]
) -> Path:
    """Store in which the map is made: a name for these parameters, so that the same call finds it again."""
    places = {
        name: transformation.to_affine_matrix(("x", "y"), ("x", "y")).tolist()
        for name, transformation in transformations.items()
    }
    text = json.dumps([identity(params), places], sort_keys=True)
    tag = hashlib.sha256(text.encode()).hexdigest()[:16]
    if sdata.is_backed():
        return staging_path(sdata.path, f"images-{key}-{tag}")
    return Path(settings.cache_dir) / "features" / f"{key}-{tag}.zarr"


def home(sdata: SpatialData, key: str, work: Path) -> Path | None:
    """Folder of the map that is there, if it was made there, so that it is known what its chunks must be."""
    element = (Path(sdata.path) if sdata.is_backed() else work) / "images" / key
    return element if ChunkRecord.exists(element) else None


def prepare(
    work: Path,
    key: str,
    grid: Grid,
    params: dict[str, Any],
    transformations: dict[str, BaseTransformation],
    *,
    beside: Path | None,
) -> Path:
    """Folder of the map in the store ``work``, which is made unless an earlier call has begun it.

    The map is empty at first, and appears under its name only when all that describes it is there.
    """
    if ChunkRecord.exists(work / "images" / key):
        return work / "images" / key
    with explained(work):
        shape = (params["dim"], *grid.shape)
        empty = da.zeros(shape, dtype=np.float16, chunks=(params["dim"], CHUNK, CHUNK))
        element = Image2DModel.parse(empty, dims=("c", "y", "x"), transformations=transformations)
        unready = work.with_name(f"{work.name}.new")
        shutil.rmtree(unready, ignore_errors=True)
        unready.parent.mkdir(parents=True, exist_ok=True)
        write_store(unready, "images", key, element, beside=beside)
        zarr.open_group(unready / "images" / key, mode="r+", use_consolidated=False).attrs["sphistex"] = params
        ChunkRecord(unready / "images" / key).create()
        shutil.rmtree(work, ignore_errors=True)
        os.rename(unready, work)
    return work / "images" / key


def put_in_place(sdata: SpatialData, key: str, work: Path) -> None:
    """Put the complete map into ``sdata`` and its store."""
    with explained(work):
        if sdata.is_backed():
            move_into_store(work, sdata.path, "images", key)
    store = sdata.path if sdata.is_backed() else work
    attach(sdata, "images", key, read_zarr(store, selection=("images",)).images[key])


def clean_up(sdata: SpatialData, key: str) -> None:
    """Remove what is left of attempts at this map, also with other parameters."""
    if not sdata.is_backed():
        return
    attempt = re.compile(re.escape(staging_path(sdata.path, f"images-{key}-").name) + r"[0-9a-f]{16}(\.new)?")
    for entry in Path(sdata.path).parent.iterdir():
        if attempt.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def check_complete(sdata: SpatialData, key: str) -> None:
    """Raise an OSError if a map has lost chunks on disk, which would be read as zeros, or they were damaged."""
    if lost := damaged(sdata.images[key]):
        raise OSError(
            f"the feature map images[{key!r}] is lost or damaged on disk ({len(lost)} files, such as {lost[0]}): call "
            "sphistex.tl.superpixel_features as when it was made, which makes just these again"
        )
