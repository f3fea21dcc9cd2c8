"""What the image encoder tells apart: the feature map's principal components as colours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import dask.array as da
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.pl._canvas import Window, beside_image, draw_raster, finish
from sphistex.pl._sources import read_picture

_FITTED_ON = 50_000
_BLOCK = 128
# A colour channel goes over this many standard deviations.
_SPREAD = 5.0
_MARGIN = 0.02


def features(
    sdata: SpatialData,
    *,
    key: str = "superpixel_features",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the image beside the feature map, its first three principal components as red, green and blue.

    Tissue of the same colour looks alike to the encoder. The components are those of at most 50,000 superpixels, and
    the map is read block by block.

    Parameters
    ----------
    sdata
        SpatialData with a feature map of :func:`sphistex.tl.superpixel_features`.
    key
        Name of the feature map.
    ax
        Axes to draw the feature map into, without the image beside it, as a part of a figure of your own.
    save
        File to save the figure to; its ending says the format.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if ``return_fig``.

    Raises
    ------
    KeyError
        If there is no such feature map.
    ValueError
        If it is empty: no superpixel lies on tissue.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=500, n_genes=20)
    >>> sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0")
    >>> figure = sx.pl.features(sdata, return_fig=True)
    """
    if key not in sdata.images:
        raise KeyError(
            f"key={key!r} is not in sdata.images: {list(sdata.images)}; make it with sphistex.tl.superpixel_features"
        )
    made = sdata.attrs.get("sphistex", {}).get(key)
    if made is None:
        raise KeyError(f"key={key!r} is an image, but not a feature map of sphistex.tl.superpixel_features")
    colours = principal_colours(da.asarray(sdata.images[key].data))
    rows, columns = (np.flatnonzero(~np.isnan(colours[..., 0]).all(axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError(f"key={key!r} holds only zeros: no superpixel lies on tissue")
    pitch_um = made["pitch_um"]
    whole = Window(0.0, 0.0, colours.shape[1] * pitch_um, colours.shape[0] * pitch_um)
    tissue = Window(*(float(i) * pitch_um for i in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))
    window = tissue.padded(_MARGIN)

    picture = read_picture(sdata, made["image_key"], window, made["mpp"]) if ax is None else None
    figure, axes = beside_image(ax, picture, 1, window)
    draw_raster(axes[-1], np.nan_to_num(colours, nan=1.0), whole)
    axes[-1].set_title(f"{made['encoder']}, {pitch_um:g} µm", fontsize=10)
    return finish(figure, save, return_fig, ax=ax)


def principal_colours(vectors: da.Array, *, seed: int = 0) -> NDArray[np.float32]:
    """First three principal components, (rows, columns, 3) from 0 to 1; NaN where the map (c, y, x) is zero."""
    mean, axes = _components(vectors, seed)
    colours = np.full((*vectors.shape[1:], 3), np.nan, dtype=np.float32)
    for where, block, inside in _blocks(vectors):
        colours[where][inside] = block @ axes - mean @ axes
    spread = np.nanstd(colours, axis=(0, 1)) if not np.isnan(colours).all() else np.ones(3)
    return np.clip(0.5 + colours / (_SPREAD * np.maximum(spread, 1e-9)), 0, 1)


def _components(vectors: da.Array, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (c,) and leading three eigenvectors (c, 3) of a sample of the superpixels' features."""
    rng = np.random.default_rng(seed)
    share = min(1.0, _FITTED_ON / (vectors.shape[1] * vectors.shape[2]))
    c = vectors.shape[0]
    n, total, products = 0, np.zeros(c), np.zeros((c, c))
    for _, block, _ in _blocks(vectors):
        sample = block[rng.random(len(block)) < share]
        n, total, products = n + len(sample), total + sample.sum(0, dtype=float), products + sample.T @ sample
    mean = total / max(n, 1)
    _, axes = np.linalg.eigh(products / max(n, 1) - np.outer(mean, mean))
    leading = axes[:, : -min(3, c) - 1 : -1]
    leading = leading * np.where(leading.sum(0) < 0, -1.0, 1.0)  # the sign means nothing: make it always the same
    return mean, np.pad(leading, ((0, 0), (0, 3 - leading.shape[1])))


def _blocks(vectors: da.Array) -> Iterator[tuple[tuple[slice, slice], NDArray[np.float32], NDArray[np.bool_]]]:
    """Place of a block, the features (n, c) of its superpixels on tissue, and which of its superpixels these are."""
    for row, column in product(*(range(0, size, _BLOCK) for size in vectors.shape[1:])):
        where = slice(row, row + _BLOCK), slice(column, column + _BLOCK)
        block = np.moveaxis(np.asarray(vectors[(slice(None), *where)], dtype=np.float32), 0, -1)
        inside: NDArray[np.bool_] = np.any(block, axis=-1)
        yield where, block[inside], inside
