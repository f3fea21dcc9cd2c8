"""Borders between superpixels, along their sides."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from sphistex.pl._canvas import Window

# Vector pictures of more sides than this are too large for most viewers.
_MANY = 20_000


def draw_border(ax: Axes, inside: NDArray[np.bool_], among: NDArray[np.bool_], window: Window, **style: object) -> None:
    """Draw a line between superpixels (rows, columns) inside and outside, of those ``among`` which both must be."""
    sides = np.concatenate([_sides(inside, among), _sides(inside.T, among.T)[..., ::-1]])
    step = np.array([window.width / inside.shape[1], window.height / inside.shape[0]])
    lines = LineCollection(sides * step + [window.left, window.top], rasterized=len(sides) > _MANY, **style)  # type: ignore[arg-type]
    lines.set_capstyle("projecting")
    ax.add_collection(lines, autolim=False)


def _sides(inside: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ends (n, 2, 2), x first, of the upright sides between superpixels of two kinds."""
    row, column = np.nonzero((inside[:, 1:] != inside[:, :-1]) & among[:, 1:] & among[:, :-1])
    top = np.column_stack([column + 1.0, row])
    return np.stack([top, top + [0, 1]], axis=1)
