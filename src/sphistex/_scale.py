"""Microns per pixel from the lattice of the spots, whose pitch is known where their diameter is not."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from sphistex._checks import is_number

VISIUM_PITCH_UM = 100.0
VISIUM_DIAMETER_UM = 55.0

# Lattice neighbours are nearer than this multiple of the pitch; the next shell is at 1.41 (square) or 1.73 (hexagonal).
_SHELL = 1.2
# Bond-orientational order is 1 on a perfect lattice and near 0 without one.
_MIN_ORDER = 0.5
# At least this share of the spots has a lattice neighbour (0.68 of a square lattice with a quarter of its spots).
_MIN_BONDED = 0.45
_MAX_CONTRADICTION = 0.2


class Lattice(NamedTuple):
    """Spacing of the spots (pixels, centre to centre) and which lattice they lie on."""

    pitch_px: float
    kind: Literal["hexagonal", "square", "irregular"]


def lattice_of(xy_px: ArrayLike) -> Lattice:
    """Find the pitch and the kind of the lattice that spots lie on; missing spots and small shifts do no harm.

    Parameters
    ----------
    xy_px
        Spot centres (n_spots, 2) in image pixels.

    Raises
    ------
    ValueError
        If there are fewer than two spots, or spots lie on top of each other.

    Examples
    --------
    >>> lattice_of([[0, 0], [10, 0], [0, 10], [10, 10]])
    Lattice(pitch_px=10.0, kind='square')
    """
    xy = np.asarray(xy_px, dtype=float)
    if len(xy) < 2:
        raise ValueError(f"the pitch of {len(xy)} spots is undefined; pass mpp=, the microns per image pixel")
    tree = cKDTree(xy)
    # The lowest quarter, because few spots have a lattice neighbour where most are missing.
    pitch = float(np.quantile(tree.query(xy, k=2)[0][:, 1], 0.25))
    if pitch == 0:
        raise ValueError("many spots lie on top of each other; check the spot centres")
    for _ in range(4):  # the nearest neighbour of a spot that sits a little off is too near: take all neighbours
        pairs = tree.query_pairs(_SHELL * pitch, output_type="ndarray")
        bonds = xy[pairs[:, 1]] - xy[pairs[:, 0]]
        pitch = float(np.median(np.hypot(*bonds.T)))
    angles = np.arctan2(bonds[:, 1], bonds[:, 0])
    order = {"hexagonal": _order(angles, 6), "square": _order(angles, 4)}
    kind = max(order, key=order.__getitem__)
    regular = order[kind] > _MIN_ORDER and len(np.unique(pairs)) > _MIN_BONDED * len(xy)
    return Lattice(pitch, kind if regular else "irregular")  # type: ignore[arg-type]


def _order(angles: NDArray[np.float64], fold: int) -> float:
    """Bond-orientational order parameter, |mean exp(i fold angle)|: 1 when all bonds agree up to 360°/fold."""
    return float(np.abs(np.exp(1j * fold * angles).mean()))


def scale_from_lattice(lattice: Lattice, *, mpp: float | None, spot_pitch_um: float | None) -> float:
    """Microns per image pixel, from the pitch or given and then checked against it.

    Parameters
    ----------
    lattice
        The spots' lattice in image pixels.
    mpp
        Microns per pixel stated by the user.
    spot_pitch_um
        Known spot pitch in µm; a hexagonal lattice without one is taken to be Visium's (100 µm).

    Raises
    ------
    ValueError
        If there is no lattice or its pitch is not known, and no ``mpp`` is given; if ``mpp`` and the pitch contradict
        each other by more than 20 %.
    """
    for name, value in (("mpp", mpp), ("spot_pitch_um", spot_pitch_um)):
        if value is not None and not (is_number(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be a positive number of microns")
    pitch_um = VISIUM_PITCH_UM if spot_pitch_um is None and lattice.kind == "hexagonal" else spot_pitch_um
    if pitch_um is None or lattice.kind == "irregular":
        if mpp is None:
            raise ValueError(
                f"the spots lie on {_ARTICLE[lattice.kind]} lattice (neighbours {lattice.pitch_px:.4g} px apart), so "
                f"that the scale of the image is not known: pass {_REMEDY[lattice.kind]}"
            )
        return float(mpp)
    from_pitch = pitch_um / lattice.pitch_px
    if mpp is None:
        return from_pitch
    if abs(mpp / from_pitch - 1) > _MAX_CONTRADICTION:
        raise ValueError(
            f"mpp={mpp:g} contradicts the spots: {lattice.pitch_px:.4g} px apart at a pitch of {pitch_um:g} µm they "
            f"give {from_pitch:.4g} µm per pixel; correct mpp=, or pass spot_pitch_um= if the pitch is another one"
        )
    return float(mpp)


_ARTICLE = {"square": "a square", "irregular": "no regular"}
_REMEDY = {
    "square": "spot_pitch_um= (200 for legacy ST arrays) or mpp=",
    "irregular": "mpp=, the microns per image pixel",
}
