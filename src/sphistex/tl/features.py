"""The feature map: every superpixel of the tissue described by an image encoder, on disk as soon as it is made."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from spatialdata import SpatialData, get_pyramid_levels, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, Sequence
from spatialdata.transformations.transformations import BaseTransformation
from tqdm.auto import tqdm
from xarray import DataArray

from sphistex import encoders
from sphistex._section import check_mpp, has_spots, resolve_image, resolve_spots
from sphistex._store import attach, check_free, move_into_store, record, staging_path, write_store
from sphistex.encoders.tiling import Block, Tiling
from sphistex.grid import Grid
from sphistex.settings import settings

logger = logging.getLogger("sphistex")

# Side of a chunk of the map in superpixels: what is read and written at once, and redone after an interruption.
_CHUNK = 64
# Finished chunks, one line each, in the store that the map is made in.
_DONE = "done.txt"
# Chunks read ahead, and chunks waiting to be written.
_PENDING = 3
_COARSE = 2.0
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def superpixel_features(
    sdata: SpatialData,
    *,
    encoder: Any = "auto",
    weights: str | Path | None = None,
    image_key: str | None = None,
    labels_key: str | None = "tissue",
    mpp: float | None = None,
    key_added: str = "superpixel_features",
    overwrite: bool = False,
    halo_px: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
) -> None:
    """Describe every 8 µm superpixel of the tissue by an image encoder.

    The image is read window by window, resampled to the encoder's microns per pixel so that every token covers
    exactly one superpixel of the :class:`~sphistex.grid.Grid`, and encoded in overlapping tiles whose border tokens
    are dropped. Memory does not grow with the image. Finished chunks are on disk at once: after an interruption
    (also a full disk, or a kill) the same call goes on where it stopped, and until the map is complete neither
    ``sdata`` nor its store is changed. A map that exists and was made with the same parameters is kept as it is.

    Parameters
    ----------
    sdata
        SpatialData with an H&E image.
    encoder
        See :func:`sphistex.encoders.get`.
    weights
        File with the encoder's weights.
    image_key
        Which image; needed only where there are several.
    labels_key
        Mask of the tissue on the grid (1 where there is tissue); it is made by :func:`sphistex.pp.tissue_mask` if
        it does not exist. Superpixels outside are zero. None: all superpixels are encoded.
    mpp
        Microns per pixel of the image; by default from the spots.
    key_added
        Name of the feature map.
    overwrite
        Replace a map of that name that was made with other parameters.
    halo_px
        Surroundings, in pixels of the encoder, that a tile at least has on each side; by default the encoder's.
    batch_size
        Tiles encoded at once; by default as many as suit the device.
    device
        Torch device; by default that of the settings.

    Returns
    -------
    Adds ``sdata.images[key_added]``: float16 (c, y, x), one pixel per superpixel, lazy, in chunks of (c, 64, 64),
    and its parameters in ``sdata.attrs["sphistex"][key_added]``. Where ``sdata`` has no store on disk, the map lies
    in the cache folder of the settings.

    Raises
    ------
    KeyError
        If a named element does not exist.
    ValueError
        If ``key_added`` exists with other parameters, the mask is not on the grid, or an argument makes no sense.
    OSError
        If the map cannot be written.

    Warns
    -----
    UserWarning
        If the image is more than twice as coarse as what the encoder takes.

    Examples
    --------
    >>> import numpy as np
    >>> from spatialdata import SpatialData
    >>> from spatialdata.models import Image2DModel
    >>> picture = np.random.default_rng(0).integers(0, 255, (3, 320, 480), dtype=np.uint8)
    >>> sdata = SpatialData(images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"))})
    >>> superpixel_features(sdata, encoder="efficientnet_lite0", labels_key=None, mpp=0.5)
    >>> sdata.images["superpixel_features"].shape
    (232, 20, 30)
    """
    made_with = _made_with(sdata, key_added)
    check_free(sdata, "images", key_added, overwrite=overwrite or made_with is not None)
    if made_with is not None and not _recorded(sdata, key_added):
        record(sdata, key_added, made_with)  # killed before this was done; unrecorded, the map passes for another image
    image_key, mpp = _image_and_scale(sdata, image_key, mpp)
    image_key, image, transforms = resolve_image(sdata, image_key=image_key)
    grid = Grid.over_image((image.sizes["y"], image.sizes["x"]), mpp)
    tiling = Tiling.of(encoders.get(encoder, weights=weights, device=device), halo_px=halo_px, batch_size=batch_size)
    tissue = _tissue(sdata, image_key, labels_key, grid)
    params = _params(tiling, grid, image_key, image, labels_key, tissue)
    if made_with is not None and _identity(made_with) == _identity(params):
        logger.info("images[%r] was made with the same parameters and is kept", key_added)
    else:
        check_free(sdata, "images", key_added, overwrite=overwrite)
        _warn_if_coarse(tiling, grid, image_key)
        transformations = {name: _of_grid(grid, to_system) for name, to_system in transforms.items()}
        work = _work_path(sdata, key_added, params, transformations)
        if not work.exists():
            with _explained(work):
                _create(work, key_added, grid, params, transformations, beside=sdata.path)
        _fill(work, key_added, image, grid, tiling, tissue)
        with _explained(work):
            _put_in_place(sdata, key_added, work)
        record(sdata, key_added, params)
    _clean_up(sdata, key_added)


# ----------------------------------------------------------------------------------------- what is to be made


def _image_and_scale(sdata: SpatialData, image_key: str | None, mpp: float | None) -> tuple[str | None, float]:
    """The microns per pixel that are given, or those that the spots tell, and of which image."""
    if mpp is None and not has_spots(sdata):
        raise ValueError("mpp=None, and there are no spots that tell the scale: pass mpp=, the microns per image pixel")
    if mpp is None:
        spots = resolve_spots(sdata, image_key=image_key)
        return spots.image_key, spots.mpp
    check_mpp(mpp)
    return image_key, mpp


def _tissue(sdata: SpatialData, image_key: str, labels_key: str | None, grid: Grid) -> NDArray[np.bool_]:
    """The tissue mask on the grid, made now if there is none."""
    if labels_key is None:
        return np.ones(grid.shape, dtype=bool)
    if labels_key not in sdata.labels:
        from sphistex.pp.tissue import tissue_mask

        tissue_mask(sdata, image_key=image_key, mpp=grid.mpp, key_added=labels_key)
    element = sdata.labels[labels_key]
    mask = np.asarray(element if isinstance(element, DataArray) else get_pyramid_levels(element, n=0))
    if mask.shape != grid.shape:
        raise ValueError(
            f"labels_key={labels_key!r} has shape {mask.shape}, but the grid of {grid.pitch_um:g} µm over image "
            f"{image_key!r} at {grid.mpp:.4g} µm per pixel has {grid.shape}; make it with sphistex.pp.tissue_mask"
        )
    return mask > 0


def _params(
    tiling: Tiling, grid: Grid, image_key: str, image: DataArray, labels_key: str | None, tissue: NDArray[np.bool_]
) -> dict[str, Any]:
    """All that the values depend on, as plain JSON."""
    return {
        "encoder": tiling.encoder.name,
        "revision": tiling.encoder.revision,
        "dim": tiling.encoder.dim,
        "mpp": grid.mpp,
        "pitch_um": grid.pitch_um,
        "image_key": image_key,
        "image_crc": _fingerprint(image),
        "labels_key": labels_key,
        "labels_crc": zlib.crc32(np.packbits(tissue).tobytes()),
        "halo_px": tiling.halo * tiling.encoder.patch_size,
        "tile_size": tiling.encoder.tile_size,
        "version": _version(),
    }


def _version() -> str:
    try:
        return version("sphistex")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def _fingerprint(image: DataArray, side: int = 32, per_axis: int = 4) -> int:
    """Checksum of the image's size and of small windows all over it, to notice that it is another one."""
    places = [np.linspace(0, max(image.sizes[axis] - side, 0), per_axis).astype(int) for axis in ("y", "x")]
    windows = [image.data[:, y : y + side, x : x + side] for y, x in product(*places)]
    return zlib.crc32(np.ascontiguousarray(da.stack(windows)).tobytes() + str(image.shape).encode())


def _of_grid(grid: Grid, to_system: BaseTransformation) -> BaseTransformation:
    return Sequence([Scale([grid.pitch_px, grid.pitch_px], axes=("x", "y")), to_system])


def _warn_if_coarse(tiling: Tiling, grid: Grid, image_key: str) -> None:
    if (factor := grid.mpp / tiling.encoder.mpp) > _COARSE:
        warnings.warn(
            f"image {image_key!r} has {grid.mpp:.3g} µm per pixel and is enlarged {factor:.2g}× to the "
            f"{tiling.encoder.mpp:g} that encoder {tiling.encoder.name!r} was made for; "
            "it shows no detail finer than its own pixels",
            UserWarning,
            stacklevel=3,
        )


# ------------------------------------------------------------------- where it is made, and where it goes


def _made_with(sdata: SpatialData, key: str) -> dict[str, Any] | None:
    """Parameters of the map that is there.

    They are kept in the element itself, so that they change in the same moment as the map; a copy of the store made
    by ``sdata.write`` has lost them, but kept the record in ``sdata.attrs``.
    """
    if key not in sdata.images:
        return None
    if sdata.is_backed() and (element := Path(sdata.path) / "images" / key).exists():
        own: Any = zarr.open_group(element, mode="r").attrs.get("sphistex")
        return own or _recorded(sdata, key)
    return _recorded(sdata, key)


def _recorded(sdata: SpatialData, key: str) -> dict[str, Any] | None:
    return sdata.attrs.get("sphistex", {}).get(key)


def _identity(params: dict[str, Any]) -> dict[str, Any]:
    """What makes two maps the same; a new version of the package is no reason to compute for hours again."""
    return {name: value for name, value in params.items() if name != "version"}


def _work_path(
    sdata: SpatialData, key: str, params: dict[str, Any], transformations: dict[str, BaseTransformation]
) -> Path:
    """Store in which the map is made: a name for these parameters, so that the same call finds it again."""
    places = {
        name: transformation.to_affine_matrix(("x", "y"), ("x", "y")).tolist()
        for name, transformation in transformations.items()
    }
    text = json.dumps([_identity(params), places], sort_keys=True)
    tag = hashlib.sha256(text.encode()).hexdigest()[:16]
    if sdata.is_backed():
        return staging_path(sdata.path, f"images-{key}-{tag}")
    return Path(settings.cache_dir) / "features" / f"{key}-{tag}.zarr"


def _create(
    work: Path,
    key: str,
    grid: Grid,
    params: dict[str, Any],
    transformations: dict[str, BaseTransformation],
    *,
    beside: Path | None,
) -> None:
    """An empty map in a store of its own, which appears under its name only when it is complete."""
    shape = (params["dim"], *grid.shape)
    empty = da.zeros(shape, dtype=np.float16, chunks=(params["dim"], _CHUNK, _CHUNK))
    element = Image2DModel.parse(empty, dims=("c", "y", "x"), transformations=transformations)
    unready = work.with_name(f"{work.name}.new")
    shutil.rmtree(unready, ignore_errors=True)
    unready.parent.mkdir(parents=True, exist_ok=True)
    write_store(unready, "images", key, element, beside=beside)
    zarr.open_group(unready / "images" / key, mode="r+", use_consolidated=False).attrs["sphistex"] = params
    (unready / _DONE).touch()
    os.rename(unready, work)


@contextmanager
def _explained(work: Path) -> Iterator[None]:
    """Say of an error in writing what it means for the user."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"the feature map could not be written to {work}: {error.strerror or error}. Nothing else was changed; "
            "make room or give permission, and the same call goes on where it stopped",
        ) from error


def _put_in_place(sdata: SpatialData, key: str, work: Path) -> None:
    """Put the complete map into ``sdata`` and its store."""
    if sdata.is_backed():
        move_into_store(work, sdata.path, "images", key)
    home = sdata.path if sdata.is_backed() else work
    attach(sdata, "images", key, read_zarr(home, selection=("images",)).images[key])


def _clean_up(sdata: SpatialData, key: str) -> None:
    """Remove what is left of attempts at this map, also with other parameters."""
    if not sdata.is_backed():
        return
    attempt = re.compile(re.escape(staging_path(sdata.path, f"images-{key}-").name) + r"[0-9a-f]{16}(\.new)?")
    for entry in Path(sdata.path).parent.iterdir():
        if attempt.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


# --------------------------------------------------------------------------------------------------- filling


def _fill(work: Path, key: str, image: DataArray, grid: Grid, tiling: Tiling, tissue: NDArray[np.bool_]) -> None:
    """Encode all chunks that are not done yet, reading ahead and writing behind in threads."""
    _, array = next(iter(zarr.open_group(work / "images" / key, mode="r+").arrays()))
    done = set((work / _DONE).read_text().splitlines())
    blocks = [tiling.block(rows, columns, tissue) for rows, columns in product(*map(_chunks, grid.shape))]
    todo = [block for block in blocks if block.tiles and _name(block) not in done]
    total, left = (sum(len(block.tiles) for block in part) for part in (blocks, todo))

    def read(block: Block) -> NDArray[np.uint8]:
        return tiling.read(image.data, grid.mpp, block)

    def write(block: Block, tokens: NDArray[np.float16]) -> None:
        with _explained(work):
            array[:, block.rows, block.columns] = tokens
            finished.write(f"{_name(block)}\n".encode())

    with (
        (work / _DONE).open("ab", buffering=0) as finished,
        ThreadPoolExecutor(max(1, settings.n_workers)) as threads,
        tqdm(total=total, initial=total - left, unit="tile", desc="features", disable=not settings.progress) as bar,
    ):
        writing: deque[Future[None]] = deque()
        for block, picture in _ahead(threads, read, todo):
            writing.append(threads.submit(write, block, tiling.encode(picture, block, tissue)))
            bar.update(len(block.tiles))
            if len(writing) > _PENDING:
                writing.popleft().result()
        for pending in writing:
            pending.result()


def _ahead(
    threads: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: list[_Item]
) -> Iterator[tuple[_Item, _Result]]:
    """Items and what the function makes of them, in order, a few of them computed ahead."""
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    for item in items:
        waiting.append((item, threads.submit(function, item)))
        if len(waiting) > _PENDING:
            first, result = waiting.popleft()
            yield first, result.result()
    for first, result in waiting:
        yield first, result.result()


def _chunks(size: int) -> list[slice]:
    return [slice(first, min(first + _CHUNK, size)) for first in range(0, size, _CHUNK)]


def _name(block: Block) -> str:
    return f"{block.rows.start} {block.columns.start}"
