"""Picture of a simulated section: dye amounts at 0.5 µm per pixel, and the light that passes through them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from sphistex.datasets import _tissue as ts
from sphistex.datasets._cells import CELL_TYPES, CellType
from sphistex.datasets._tissue import PLAN_UM, Field, Tissue, smooth_noise, upsample

MPP = 0.5
_FACTOR = round(PLAN_UM / MPP)
# Dye at pixels given as rows, columns, and offsets x, y in µm from the cell's centre; all broadcast to (n, k, k).
_Painter = Callable[[NDArray, NDArray, NDArray, NDArray], NDArray]

# Side of the periodic textures, a power of two; the image is painted in bands of rows that divide it.
_PERIOD = 512
_BAND_PX = 512
_BATCH = 250

# Optical density (red, green, blue) of one unit of haematoxylin and of eosin: Macenko et al., ISBI 2009.
_DYES = np.array([[0.62, 0.70, 0.34], [0.2159, 0.8012, 0.5581]])

# What each compartment takes up without its nuclei: haematoxylin, eosin, how fibrous it is.
_UPTAKE = {
    ts.BACKGROUND: (0.0, 0.0, 0.0),
    ts.STROMA: (0.03, 0.52, 0.5),
    ts.TUMOUR: (0.16, 0.30, 0.08),
    ts.GLAND: (0.17, 0.42, 0.05),
    ts.LUMEN: (0.0, 0.0, 0.0),
    ts.IMMUNE: (0.14, 0.24, 0.15),
    ts.ADIPOSE: (0.02, 0.45, 0.1),
    ts.VESSEL: (0.04, 0.60, 0.15),
    ts.BLOOD: (0.0, 0.0, 0.0),
}


def render(
    tissue: Tissue, cells: pd.DataFrame, shape_px: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Paint the section as an RGB image (3, height, width) at 0.5 µm/px."""
    haematoxylin, eosin = _dyes(tissue, shape_px, rng)
    _stamp_cells(haematoxylin, eosin, cells, rng)
    _stamp_red_cells(eosin, tissue, rng)
    # The optics' own softness.
    haematoxylin, eosin = (gaussian_filter(dye, 0.9, truncate=2.5) for dye in (haematoxylin, eosin))
    return _develop(haematoxylin, eosin, tissue.compartment.shape, rng)


def _dyes(tissue: Tissue, shape_px: tuple[int, int], rng: np.random.Generator) -> tuple[Field, Field]:
    """Haematoxylin and eosin without nuclei, band by band of rows: (height, width) each."""
    uptake = _uptake(tissue)
    bundles = _periodic(rng, (1.6, 2.5)) + 0.7 * _periodic(rng, (5.0, 3.0))
    grain = 0.6 * _periodic(rng, (1.2, 1.2)) + 0.6 * _periodic(rng, (4.0, 4.0))
    haematoxylin, eosin = (np.empty(shape_px, np.float32) for _ in range(2))
    x = np.arange(shape_px[1], dtype=np.float32)
    for rows in _bands(shape_px[0]):
        blue, pink, fibrous, fibre_um, solid_um = (
            _magnify(field, rows, shape_px[1]) for field in (*uptake, tissue.fibre_um, tissue.solid_um)
        )
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
        strand = _look_up(bundles, fibre_um / MPP, (0.6 * x + 0.8 * y) / 24)
        speckle = _tile(grain, rows, shape_px[1])
        gap = np.clip((-strand - 1.45) * 2.5, 0, 1) * np.clip(fibrous * 4 - 1, 0, 1)
        matter = np.clip(0.5 + solid_um / 1.2 + 0.3 * speckle, 0, 1) * (1 - gap)
        eosin[rows] = matter * pink * np.exp(0.55 * fibrous * strand + 0.16 * speckle)
        haematoxylin[rows] = matter * blue * np.exp(0.25 * speckle)
    return haematoxylin, eosin


def _bands(height: int) -> list[slice]:
    return [slice(start, min(start + _BAND_PX, height)) for start in range(0, height, _BAND_PX)]


def _magnify(field: Field, rows: slice, width: int) -> Field:
    """Bring some rows of an image's worth of plan to full resolution."""
    first = max(rows.start // _FACTOR - 1, 0)
    last = -(-rows.stop // _FACTOR) + 1
    start = rows.start - first * _FACTOR
    return upsample(field[first:last], _FACTOR)[start : start + rows.stop - rows.start, :width]


def _tile(texture: Field, rows: slice, width: int) -> Field:
    """Repeat a periodic texture over some rows of the image."""
    start = rows.start % _PERIOD
    return np.tile(texture[start : start + rows.stop - rows.start], -(-width // _PERIOD))[:, :width]


def _uptake(tissue: Tissue) -> tuple[Field, Field, Field]:
    """Uptake on the plan; empty places borrow from the nearest matter, so that edges stay crisp."""
    empty = np.isin(tissue.compartment, (ts.BACKGROUND, ts.LUMEN, ts.BLOOD))
    nearest = distance_transform_edt(empty, return_distances=False, return_indices=True)
    table = np.array([_UPTAKE[code] for code in range(len(ts.COMPARTMENTS))], np.float32)
    per_pixel = table[tissue.compartment[tuple(nearest)]]
    blue, pink, fibrous = (gaussian_filter(per_pixel[..., channel], 0.8) for channel in range(3))
    return blue, pink, fibrous


def _periodic(rng: np.random.Generator, sigma: tuple[float, float]) -> Field:
    """Tile of noise with mean 0 and variance 1 that repeats without a seam."""
    noise = gaussian_filter(rng.standard_normal((_PERIOD, _PERIOD), dtype=np.float32), sigma, mode="wrap")
    return noise / noise.std()


def _look_up(tile: Field, first: NDArray, second: NDArray) -> Field:
    """Read a periodic tile at real coordinates, linear along the first axis."""
    low = np.floor(first)
    share = first - low
    row, column = low.astype(np.int32) & (_PERIOD - 1), second.astype(np.int32) & (_PERIOD - 1)
    return tile[row, column] * (1 - share) + tile[(row + 1) & (_PERIOD - 1), column] * share


def _stamp_cells(haematoxylin: Field, eosin: Field, cells: pd.DataFrame, rng: np.random.Generator) -> None:
    """Add every cell's nucleus to the haematoxylin, and its cytoplasm to the eosin."""
    chromatin = _periodic(rng, (1.5, 1.5))
    for code, kind in enumerate(CELL_TYPES):
        # In order of size, so that the patches of a batch are no larger than its cells need.
        chosen = cells[cells["type"] == code].sort_values("long_um", kind="stable")
        for start in range(0, len(chosen), _BATCH):
            some = chosen.iloc[start : start + _BATCH]
            if kind.body_um:
                _stamp(eosin, some, kind.body_um, _cytoplasm(some, kind, rng))
            _stamp(haematoxylin, some, 1.3 * some["long_um"].max(), _nuclei(some, kind, chromatin, rng))


def _patch_um(cells: pd.DataFrame, reach_um: float) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Pixels around each cell: row and column in the image, and offset (x, y) from the centre in µm; (n, k, k)."""
    reach = int(np.ceil(reach_um / MPP))
    offsets = np.arange(-reach, reach + 1)
    centre = cells[["y_um", "x_um"]].to_numpy()[:, :, None] / MPP
    pixels = np.floor(centre).astype(np.int32) + offsets
    gaps = ((pixels + 0.5 - centre) * MPP).astype(np.float32)
    return pixels[:, 0, :, None], pixels[:, 1, None, :], gaps[:, 1, None, :], gaps[:, 0, :, None]


def _stamp(canvas: Field, cells: pd.DataFrame, reach_um: float, paint: _Painter) -> None:
    """Lay patches on the canvas; where they overlap the darker one shows."""
    rows, columns, x, y = _patch_um(cells, reach_um)
    values = paint(rows, columns, x, y)
    inside = (rows >= 0) & (rows < canvas.shape[0]) & (columns >= 0) & (columns < canvas.shape[1]) & (values > 0)
    index = (rows.astype(np.int64) * canvas.shape[1] + columns)[inside]
    np.maximum.at(canvas.reshape(-1), index, values[inside])


def _nuclei(cells: pd.DataFrame, kind: CellType, chromatin: Field, rng: np.random.Generator) -> _Painter:
    """Painter of nuclei: ellipses with a wobbling outline, chromatin texture, a darker rim and a nucleolus."""
    angle, long, short = (cells[name].to_numpy(np.float32)[:, None, None] for name in ("angle", "long_um", "short_um"))
    wobble = np.clip(rng.normal(0, 0.1 + 0.5 * kind.variation, (3, len(cells), 1, 1)), -0.6, 0.6).astype(np.float32)
    dark = np.float32(kind.darkness) * np.exp(rng.normal(0, 0.12, (len(cells), 1, 1)).astype(np.float32))
    spot = rng.normal(0, 0.3, (2, len(cells), 1, 1)).astype(np.float32)

    def paint(rows, columns, x, y):
        u = (x * np.cos(angle) + y * np.sin(angle)) / long
        v = (y * np.cos(angle) - x * np.sin(angle)) / short
        square = u**2 + v**2
        square *= 1 + (wobble[0] * u + wobble[1] * v + wobble[2] * u * v) / (1 + square)
        radius = np.sqrt(square)
        edge = np.clip((1 - radius) * short / 0.9 + 0.5, 0, 1)
        texture = 1 + (0.16 + 0.2 * kind.vesicular) * chromatin[rows & (_PERIOD - 1), columns & (_PERIOD - 1)]
        density = (1 - 0.55 * kind.vesicular * np.clip(1.15 - square, 0, 1)) * texture
        nucleolus = kind.vesicular * np.clip(1.5 - ((u - spot[0]) * long) ** 2 - ((v - spot[1]) * short) ** 2, 0, 1)
        return edge * dark * np.maximum(density, 0.25) * (1 + 0.8 * nucleolus)

    return paint


def _cytoplasm(cells: pd.DataFrame, kind: CellType, rng: np.random.Generator) -> _Painter:
    """Painter of cell bodies: soft disks, each taking up its own amount of eosin."""
    amount = rng.normal(0.5, 0.07, (len(cells), 1, 1)).astype(np.float32)

    def paint(rows, columns, x, y):
        return amount * np.clip((kind.body_um - np.hypot(x, y)) / 2.5, 0, 1)

    return paint


def _stamp_red_cells(eosin: Field, tissue: Tissue, rng: np.random.Generator) -> None:
    """Fill part of the vessels with red blood cells: small disks of eosin alone."""
    blood = (tissue.compartment == ts.BLOOD) & (smooth_noise(tissue.compartment.shape, 20.0, rng) > -0.2)
    xy = ts.scatter(blood, int(blood.sum() * PLAN_UM**2 / 15), rng)
    if not len(xy):
        return
    xy = xy[ts.spread(xy, np.full(len(xy), 2.6), rng)]
    red = pd.DataFrame({"x_um": xy[:, 0], "y_um": xy[:, 1]})
    _stamp(eosin, red, 4.0, lambda rows, columns, x, y: 0.95 * np.clip((3.1 - np.hypot(x, y)) / 0.8, 0, 1))


def _develop(
    haematoxylin: Field, eosin: Field, plan_shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Beer-Lambert: light through both dyes, with uneven staining, uneven light and a camera's noise."""
    dyes = _DYES * np.exp(rng.normal(0, 0.04, _DYES.shape))
    dyes /= np.linalg.norm(dyes, axis=1, keepdims=True)
    amounts = rng.normal(1.0, 0.06, 2).tolist()
    uneven = [amount * np.exp(0.06 * smooth_noise(plan_shape, 250.0, rng)) for amount in amounts]
    light = 1 + 0.01 * smooth_noise(plan_shape, 500.0, rng)
    lamp = np.array([243, 241, 244]) + rng.normal(0, 1.0, 3)
    noise = _periodic(rng, (0.5, 0.5))
    shape = haematoxylin.shape
    image = np.empty((3, *shape), np.uint8)
    for rows in _bands(shape[0]):
        blue, pink, lit = (_magnify(field, rows, shape[1]) for field in (*uneven, light))
        blue, pink = blue * haematoxylin[rows], pink * eosin[rows]
        grain = _tile(noise, rows, shape[1])
        for channel in range(3):
            density = np.float32(dyes[0, channel]) * blue + np.float32(dyes[1, channel]) * pink
            value = np.float32(lamp[channel]) * lit * np.exp(-density) + 1.5 * np.roll(grain, 7 * channel, axis=1)
            image[channel, rows] = np.clip(value, 0, 255)
    return image
