"""Architecture of a simulated section: which compartment lies where, and how the stroma's fibres run around them.

Everything here is drawn on the *plan*, a raster of 2 µm per pixel: fine enough for the borders, sixteen times smaller
than the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import cKDTree

PLAN_UM = 2.0
_CORNER_UM = 2.0

COMPARTMENTS = ("background", "stroma", "tumour", "gland", "lumen", "immune", "adipose", "vessel", "blood")
BACKGROUND, STROMA, TUMOUR, GLAND, LUMEN, IMMUNE, ADIPOSE, VESSEL, BLOOD = range(len(COMPARTMENTS))

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Tissue:
    """One section's architecture; every field is (rows, columns) on the plan.

    Parameters
    ----------
    compartment
        Index into `COMPARTMENTS`.
    solid_um
        Signed distance to the nearest edge of solid matter, positive inside it: borders, lumens, fat droplets.
    fibre_um
        Potential whose level lines are the stroma's fibres.
    inward_um
        Depth inside glands and vessels, from their outer border.
    """

    compartment: NDArray[np.uint8]
    solid_um: Field
    fibre_um: Field
    inward_um: Field


def lay_out(shape: tuple[int, int], rng: np.random.Generator) -> Tissue:
    """Draw the compartments of a section of ``shape`` plan pixels.

    Shares are quantiles of smooth random fields, so that a small section has every compartment as well.
    """
    extent = min(shape) * PLAN_UM
    inside = _outline(shape, rng)
    compartment = np.where(inside, STROMA, BACKGROUND).astype(np.uint8)
    region = smooth_noise(shape, min(300.0, extent / 5), rng) + 0.25 * smooth_noise(shape, 40.0, rng)
    low, high = np.quantile(region[inside], [0.28, 0.66])
    margin = distance_transform_edt(inside) * PLAN_UM

    nests = smooth_noise(shape, 16.0, rng) + 0.6 * smooth_noise(shape, 45.0, rng)
    tumour = inside & (region > high) & (nests > np.quantile(nests, 0.38)) & (margin > 12)
    compartment[tumour] = TUMOUR
    compartment[_fat(inside & (region < low), rng)] = ADIPOSE

    lobules = smooth_noise(shape, 45.0, rng) > -0.6
    glandular = inside & (region > low) & (region < high) & lobules & (margin > 30)
    gland_um, lumen_um = _tubes(shape, glandular, _gland_radii, (13.0, 19.0), 2500.0, rng)
    compartment[(gland_um > 0) & inside] = GLAND
    compartment[(lumen_um > 0) & (gland_um > 0) & inside] = LUMEN

    near_tumour = np.exp(-distance_transform_edt(~tumour) * PLAN_UM / 60.0)
    immune = smooth_noise(shape, 35.0, rng) + 1.5 * near_tumour + 0.3 * smooth_noise(shape, 8.0, rng)
    stroma = compartment == STROMA
    compartment[stroma & (immune > np.quantile(immune[stroma], 0.86))] = IMMUNE

    open_stroma = (compartment == STROMA) & (margin > 30)
    wall_um, blood_um = _tubes(shape, open_stroma, _vessel_radii, (4.0, 7.0), 70.0, rng)
    wall_um[compartment != STROMA] = -1.0
    compartment[wall_um > 0] = VESSEL
    compartment[(blood_um > 0) & (wall_um > 0)] = BLOOD

    return Tissue(
        compartment,
        _solid(compartment, rng),
        _fibres(compartment, rng),
        np.maximum(gland_um, wall_um).astype(np.float32),
    )


def smooth_noise(shape: tuple[int, int], scale_um: float, rng: np.random.Generator, pixel_um: float = PLAN_UM) -> Field:
    """Gaussian random field with mean 0, variance 1 and correlation length ``scale_um``."""
    sigma = scale_um / pixel_um
    # White noise filtered beyond a few pixels is smooth: draw it coarser and interpolate.
    step = max(1, int(sigma // 2))
    coarse = tuple(-(-size // step) + 2 for size in shape)
    field = gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma / step, mode="reflect")
    field = upsample(field, step)[: shape[0], : shape[1]]
    return (field - field.mean()) / field.std()


def upsample(field: Field, factor: int) -> Field:
    """Bilinear interpolation to pixels ``factor`` times smaller."""
    for axis in (0, 1):
        size = field.shape[axis]
        padded = np.pad(field, [(1, 1) if side == axis else (0, 0) for side in (0, 1)], mode="edge")
        before, here, after = (padded.take(range(start, start + size), axis) for start in range(3))
        offsets = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]
        phases = [here + abs(offset) * ((after if offset > 0 else before) - here) for offset in offsets]
        shape = (size * factor, -1) if axis == 0 else (-1, size * factor)
        field = np.stack(phases, axis=axis + 1).reshape(shape)
    return field


def spread(xy: NDArray, radii: NDArray, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose a random, maximal subset of disks that do not overlap; returns their indices.

    Luby's parallel algorithm: of the disks still undecided, those that come before all they touch are kept.
    """
    pairs = cKDTree(xy).query_pairs(2 * radii.max(), output_type="ndarray")
    gaps = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1)
    pairs = pairs[gaps < radii[pairs].sum(axis=1)]
    order = rng.permutation(len(xy))
    kept, alive = np.zeros(len(xy), bool), np.ones(len(xy), bool)
    while alive.any():
        pairs = pairs[alive[pairs].all(axis=1)]
        later = np.where(order[pairs[:, 0]] > order[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        first = alive.copy()
        first[later] = False
        kept |= first
        alive &= ~first
        touched = first[pairs]
        alive[pairs[touched.any(axis=1)]] = False
    return np.flatnonzero(kept)


def scatter(mask: Mask, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw ``n`` uniform points (x, y) in µm inside a mask; none if it is empty."""
    places = np.flatnonzero(mask)
    if not len(places):
        return np.zeros((0, 2))
    rows, columns = np.unravel_index(rng.choice(places, n), mask.shape)
    return (np.stack([columns, rows], axis=1) + rng.random((n, 2))) * PLAN_UM


def _outline(shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    """The section against the empty slide: a rounded square with a ragged edge."""
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    reach = np.abs(y[:, None]) ** 4 + np.abs(x) ** 4
    extent = min(shape) * PLAN_UM
    ragged = 0.45 * smooth_noise(shape, extent / 8, rng) + 0.1 * smooth_noise(shape, 25.0, rng)
    field = 0.75 - reach + 0.5 * ragged + 0.02 * smooth_noise(shape, 6.0, rng)
    return field > 0


def _gland_radii(n: int, rng: np.random.Generator) -> NDArray:
    return np.where(rng.random(n) < 0.03, rng.uniform(45, 85, n), rng.uniform(21, 36, n))


def _vessel_radii(n: int, rng: np.random.Generator) -> NDArray:
    return rng.gamma(3.0, 4.0, n) + 7.0


def _tubes(
    shape: tuple[int, int],
    region: Mask,
    draw_radii: Callable[[int, np.random.Generator], NDArray[np.float64]],
    wall_range_um: tuple[float, float],
    per_mm2: float,
    rng: np.random.Generator,
) -> tuple[Field, Field]:
    """Cut tubes across, up to ``per_mm2`` in a region.

    Returns the depth in µm below their outer border, and below the border of their lumen (negative outside).
    """
    depth = np.full(shape, -1e3, np.float32)
    lumen = np.full(shape, -1e3, np.float32)
    n = rng.poisson(region.sum() * PLAN_UM**2 / 1e6 * per_mm2)
    centres = scatter(region, n, rng)
    radii = draw_radii(len(centres), rng)
    if not len(centres):
        return depth, lumen
    warp = [smooth_noise(shape, 18.0, rng) * 6.0 for _ in range(2)]
    fold = 2.0 * smooth_noise(shape, 5.0, rng)
    for tube in spread(centres, radii + 6.0, rng):
        reach, wall, angle = radii[tube], rng.uniform(*wall_range_um), rng.uniform(0, np.pi)
        stretch = rng.uniform(0.75, 1.0)
        window = _window(shape, centres[tube], reach + 30.0)
        y = (np.arange(shape[0])[window[0]] + 0.5)[:, None] * PLAN_UM - centres[tube, 1] + warp[0][window]
        x = (np.arange(shape[1])[window[1]] + 0.5) * PLAN_UM - centres[tube, 0] + warp[1][window]
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        inner = reach - np.hypot(along, across / stretch)
        depth[window] = np.maximum(depth[window], inner)
        lumen[window] = np.maximum(lumen[window], inner - wall + fold[window])
    return depth, lumen


def _window(shape: tuple[int, int], xy_um: NDArray, reach_um: float) -> tuple[slice, slice]:
    low = np.maximum((xy_um - reach_um) / PLAN_UM, 0).astype(int)
    high = np.ceil((xy_um + reach_um) / PLAN_UM).astype(int)
    return slice(low[1], min(high[1], shape[0])), slice(low[0], min(high[0], shape[1]))


def _fat(region: Mask, rng: np.random.Generator) -> Mask:
    """Fat takes the inner part of a region, in lobules."""
    lobules = smooth_noise(region.shape, 60.0, rng)
    return region & (lobules > np.quantile(lobules, 0.6))


def _signed_um(mask: Mask) -> Field:
    """Signed distance in µm to the mask's edge, positive inside."""
    distance = distance_transform_edt(mask) - distance_transform_edt(~mask)
    return (distance * PLAN_UM).astype(np.float32)


def _solid(compartment: NDArray[np.uint8], rng: np.random.Generator) -> Field:
    """Distance to emptiness; fat is emptied cell by cell, leaving the membranes between its droplets."""
    empty = np.isin(compartment, (BACKGROUND, LUMEN, BLOOD))
    solid = gaussian_filter(_signed_um(~empty), 1.0)
    fat = compartment == ADIPOSE
    centres = scatter(fat, int(fat.sum() * PLAN_UM**2 / 250) + 2, rng)
    if not fat.any():
        return solid
    centres = centres[spread(centres, rng.uniform(16, 26, len(centres)), rng)]
    rows, columns = np.nonzero(fat)
    here = (np.stack([columns, rows], axis=1) + 0.5) * PLAN_UM
    # Far points stand in for neighbours that a lone droplet does not have.
    gaps, _ = cKDTree(np.vstack([centres, np.full((3, 2), -1e4)])).query(here, k=4)
    walls = [*((gaps[:, 1:] - gaps[:, :1]) / 2).T, distance_transform_edt(fat)[fat] * PLAN_UM - 0.5]
    # A smooth minimum of the distances to the walls around rounds the droplets' corners.
    solid[fat] = _CORNER_UM * np.log(np.sum([np.exp(-wall / _CORNER_UM) for wall in walls], axis=0)) + 1.5
    return gaussian_filter(solid, 0.7)


def _fibres(compartment: NDArray[np.uint8], rng: np.random.Generator) -> Field:
    """Fibres follow the outlines of what they surround, and wander with distance from it."""
    around = distance_transform_edt(np.isin(compartment, (STROMA, IMMUNE))) * PLAN_UM
    potential = gaussian_filter(50.0 * np.tanh(around / 50.0), 4.0).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (np.arange(size, dtype=np.float32) * PLAN_UM for size in compartment.shape)
    potential += 0.7 * (np.sin(angle) * y[:, None] + np.cos(angle) * x)
    for scale_um, swing_um in ((200.0, 110.0), (40.0, 10.0), (9.0, 1.6)):
        potential += swing_um * smooth_noise(compartment.shape, scale_um, rng)
    return potential
