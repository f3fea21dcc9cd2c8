"""The feature map: every superpixel of the tissue described by an image encoder, on disk as soon as it is made."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.transformations import Scale, Sequence
from spatialdata.transformations.transformations import BaseTransformation
from xarray import DataArray, DataTree

from sphistex import encoders
from sphistex._readable import readable
from sphistex._section import check_mpp, has_spots, recorded_mpp, resolve_image, resolve_spots
from sphistex._store import check_free, record
from sphistex.encoders.batching import check_batch_size
from sphistex.encoders.tiling import Tiling
from sphistex.grid import Grid
from sphistex.tl import _feature_store as store
from sphistex.tl._chunks import gone
from sphistex.tl._encoding import fill

logger = logging.getLogger("sphistex")

_COARSE = 2.0
# Numbers of an image that are read in a second or so.
_READ_QUICKLY = 2**28


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
    ``sdata`` nor its store is changed. A map that exists and was made with the same parameters is kept; what the disk
    has lost of it is made again.

    All GPUs of the machine are used if the device is ``"cuda"`` or ``"auto"``. With a ``dask.distributed`` client
    active, the chunks are spread over its workers.

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
        Microns per pixel of the image; by default from the spots or, without any, as :func:`sphistex.io.read_image`
        noted them.
    key_added
        Name of the feature map.
    overwrite
        Replace a map of that name that was made with other parameters.
    halo_px
        Surroundings, in pixels of the encoder, that a tile at least has on each side; by default the encoder's.
    batch_size
        Tiles encoded at once; by default as many as suit the device. It is halved when they do not fit into memory.
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
        If the image cannot be read, or the map cannot be written.
    MemoryError
        If the device cannot hold a single tile.

    Warns
    -----
    UserWarning
        If the image is more than twice as coarse as what the encoder takes, the batches did not fit into memory, or a
        map on disk was damaged.

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
    make_features(
        sdata,
        encoder=encoder,
        weights=weights,
        image_key=image_key,
        labels_key=labels_key,
        mpp=mpp,
        key_added=key_added,
        overwrite=overwrite,
        halo_px=halo_px,
        batch_size=batch_size,
        device=device,
    )


def make_features(
    sdata: SpatialData,
    *,
    encoder: Any,
    weights: str | Path | None = None,
    image_key: str | None,
    labels_key: str | None,
    mpp: float | None,
    key_added: str,
    overwrite: bool = False,
    halo_px: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    warn_if_coarse: bool = True,
) -> Path:
    """:func:`superpixel_features`, and where the map was made: of an ``sdata`` without a store it stays there."""
    made_with = store.made_with(sdata, key_added)
    check_free(sdata, "images", key_added, overwrite=overwrite or made_with is not None)
    if made_with is not None and store.recorded(sdata, key_added) is None:
        record(sdata, key_added, made_with)  # killed before this was done; unrecorded, the map passes for another image
    check_batch_size(batch_size)
    image_key, mpp = _image_and_scale(sdata, image_key, mpp)
    image_key, image, transforms = resolve_image(sdata, image_key=image_key)
    grid = Grid.over_image((image.sizes["y"], image.sizes["x"]), mpp)
    tiling = Tiling.of(encoders.get(encoder, weights=weights, device=device), halo_px=halo_px)
    tissue = _tissue(sdata, image_key, labels_key, grid)
    params = _params(tiling, grid, image_key, sdata.images[image_key], image, labels_key, tissue)
    transformations = {name: _of_grid(grid, to_system) for name, to_system in transforms.items()}
    work = store.work_path(sdata, key_added, params, transformations)
    same = made_with is not None and store.identity(made_with) == store.identity(params)
    lost = gone(sdata.images[key_added]) if same else None
    kept = same and lost is None
    if kept:
        logger.info("images[%r] was made with the same parameters and is kept", key_added)
        home = store.home(sdata, key_added, work)
    else:
        check_free(sdata, "images", key_added, overwrite=overwrite or same)
        if warn_if_coarse:
            _warn_if_coarse(tiling, grid, image_key)
        home = store.prepare(work, key_added, grid, params, transformations, beside=sdata.path)
    made = fill(home, image.data, grid, tiling, tissue, batch_size=batch_size) if home is not None else 0
    if kept and made:
        warnings.warn(
            f"{made} chunks of images[{key_added!r}] were damaged or missing on disk and have been made again",
            UserWarning,
            stacklevel=3,
        )
    if lost is not None:
        message = f"images[{key_added!r}] was gone from disk ({lost}) and has been made again"
        warnings.warn(message, UserWarning, stacklevel=3)
    if not kept:
        record(sdata, key_added, params)  # first: a map that is there and not recorded passes for another image
        store.put_in_place(sdata, key_added, work)
    store.clean_up(sdata, key_added)
    return work


# ----------------------------------------------------------------------------------------- what is to be made


def _image_and_scale(sdata: SpatialData, image_key: str | None, mpp: float | None) -> tuple[str | None, float]:
    """The microns per pixel that are given, or those that the spots or else the slide tell, and of which image."""
    if mpp is not None:
        check_mpp(mpp)
        return image_key, mpp
    if has_spots(sdata):
        spots = resolve_spots(sdata, image_key=image_key)
        return spots.image_key, spots.mpp
    if (noted := recorded_mpp(sdata, image_key)) is None:
        raise ValueError("mpp=None, and there are no spots that tell the scale: pass mpp=, the microns per image pixel")
    return image_key, noted


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
    tiling: Tiling,
    grid: Grid,
    image_key: str,
    element: DataArray | DataTree,
    image: DataArray,
    labels_key: str | None,
    tissue: NDArray[np.bool_],
) -> dict[str, Any]:
    """All that the values depend on, as plain JSON."""
    return {
        "encoder": tiling.encoder.name,
        "revision": tiling.encoder.revision,
        "dim": tiling.encoder.dim,
        "mpp": grid.mpp,
        "pitch_um": grid.pitch_um,
        "image_key": image_key,
        "image_crc": _fingerprint(element, image, image_key),
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


def _fingerprint(element: DataArray | DataTree, image: DataArray, image_key: str) -> int:
    """Checksum by which it is noticed that the image is another one.

    It is that of the image's size and of all pixels of its finest level that is read quickly; where there is none, of
    small windows all over the image.
    """
    levels = [image] if isinstance(element, DataArray) else list(get_pyramid_levels(element))
    level = next((one for one in levels if one.size <= _READ_QUICKLY), None)
    found = zlib.crc32(str(image.shape).encode())
    for part in _windows_all_over(image) if level is None else _strips(level):
        with readable(f"image {image_key!r}"):
            pixels = da.asarray(part).compute(scheduler="threads")  # not by a cluster, which would be sent the image
        found = zlib.crc32(np.ascontiguousarray(pixels).data, found)
    return found


def _strips(image: DataArray, height: int = 1024) -> Iterator[Any]:
    for first in range(0, image.sizes["y"], height):
        yield image.data[:, first : first + height]


def _windows_all_over(image: DataArray, side: int = 32, per_axis: int = 4) -> Iterator[Any]:
    places = [np.linspace(0, max(image.sizes[axis] - side, 0), per_axis).astype(int) for axis in ("y", "x")]
    yield da.stack([image.data[:, y : y + side, x : x + side] for y, x in product(*places)])


def _of_grid(grid: Grid, to_system: BaseTransformation) -> BaseTransformation:
    return Sequence([Scale([grid.pitch_px, grid.pitch_px], axes=("x", "y")), to_system])


def _warn_if_coarse(tiling: Tiling, grid: Grid, image_key: str) -> None:
    if (factor := grid.mpp / tiling.encoder.mpp) > _COARSE:
        warnings.warn(
            f"image {image_key!r} has {grid.mpp:.3g} µm per pixel and is enlarged {factor:.2g}× to the "
            f"{tiling.encoder.mpp:g} that encoder {tiling.encoder.name!r} was made for; "
            "it shows no detail finer than its own pixels",
            UserWarning,
            stacklevel=4,
        )
