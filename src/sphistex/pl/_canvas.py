"""Panels on which everything is drawn in µm, at one scale, with a scale bar; and what becomes of a finished figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray

DPI = 150
# Panels narrower than this (inches) hide what 8 µm shows, wider ones do not fit beside each other.
PANEL_INCHES = 3.2
# Pixels that a picture needs along its longer side to look sharp in a panel, also on a fine screen.
PANEL_PX = 1000
_BAR_SHARE = 0.3


@dataclass(frozen=True)
class Window:
    """A rectangle of the image, in µm from its top-left corner."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """From left to right in µm."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From top to bottom in µm."""
        return self.bottom - self.top

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """As ``imshow`` wants it: left, right, bottom, top."""
        return self.left, self.right, self.bottom, self.top

    def padded(self, share: float) -> Window:
        """With a margin, a share of the longer side, all around."""
        margin = share * max(self.width, self.height)
        return Window(self.left - margin, self.top - margin, self.right + margin, self.bottom + margin)


def panels(n_rows: int, n_columns: int, window: Window) -> tuple[Figure, NDArray[np.object_]]:
    """A figure and its empty panels (n_rows, n_columns), each of the shape of the window."""
    height = PANEL_INCHES * window.height / window.width
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        squeeze=False,
        layout="compressed",  # panels of a fixed shape, close together
        dpi=DPI,
        facecolor="white",
        figsize=(PANEL_INCHES * n_columns + 0.8, height * n_rows + 0.4),
    )
    for ax in axes.ravel():
        frame(ax, window)
    return figure, axes


def frame(ax: Axes, window: Window) -> None:
    """Make a panel show a window and nothing else."""
    ax.set(xlim=(window.left, window.right), ylim=(window.bottom, window.top), aspect="equal", xticks=[], yticks=[])
    ax.set_autoscale_on(False)
    ax.spines[:].set_color("0.8")


def charts(ax: Axes | None, n: int, most_columns: int, inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure and its empty charts (n,), each of so many inches, in rows; or the axes that a user gave."""
    if ax is not None:
        return figure_of(ax), [ax]
    n_columns = min(most_columns, n)
    n_rows = -(-n // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        squeeze=False,
        figsize=(inches[0] * n_columns + 0.4, inches[1] * n_rows + 0.4),
        layout="constrained",
        dpi=DPI,
        facecolor="white",
    )
    for spare in axes.flat[n:]:
        spare.remove()
    return figure, list(axes.flat[:n])


def beside_image(
    ax: Axes | None, image: tuple[NDArray, Window] | None, n_maps: int, window: Window
) -> tuple[Figure, list[Axes]]:
    """A figure of the image and empty panels for maps beside it; or the axes that a user gave, for one map alone."""
    if ax is not None:
        frame(ax, window)
        add_scale_bar(ax)
        return figure_of(ax), [ax]
    figure, (axes,) = panels(1, 1 + n_maps, window)
    if image is not None:
        draw_raster(axes[0], *image)
    axes[0].set_title("H&E", fontsize=10)
    add_scale_bar(axes[0])
    return figure, list(axes)


def check_single(ax: Axes | None, argument: str, names: list[str]) -> None:
    """Raise a ValueError if a user gave axes, which take one map, for several."""
    if ax is not None and len(names) != 1:
        raise ValueError(f"{argument}={names}: ax= takes one of them; choose one, or leave ax= out")


def single(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """The axes that a user gave and their figure, or a new one of so many inches."""
    if ax is not None:
        return figure_of(ax), ax
    return plt.subplots(figsize=(width, height), layout="constrained", dpi=DPI, facecolor="white")


def figure_of(ax: Axes) -> Figure:
    """The figure that axes are in, also those in a part of it."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("ax= is in no figure: it was removed from it")
    return figure


def draw_raster(ax: Axes, raster: NDArray, window: Window, **kwargs: object) -> None:
    """Draw an array (rows, columns) or (rows, columns, 3) over the window that it covers."""
    limits = ax.get_xlim(), ax.get_ylim()
    ax.imshow(raster, extent=window.extent, origin="upper", **kwargs)  # type: ignore[arg-type]
    ax.set(xlim=limits[0], ylim=limits[1])


def around_zero(values: NDArray, quantile: float = 1.0) -> TwoSlopeNorm:
    """A scale that is the same on both sides of 0 and holds this share of the values."""
    size = np.abs(values[np.isfinite(values)])
    most = float(np.quantile(size, quantile)) if len(size) else 0.0
    return TwoSlopeNorm(0.0, -(most or 1.0), most or 1.0)


def add_colour_bar(
    figure: Figure,
    axes: list[Axes],
    colours: ScalarMappable,
    label: str,
    extend: Literal["neither", "both", "min", "max"] = "neither",
) -> Axes:
    """Draw the colour scale that panels share to the right of them."""
    bar = figure.colorbar(colours, ax=axes, extend=extend, shrink=0.8, aspect=25, pad=0.015)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return bar.ax


def add_legend(figure: Figure, ax: Axes | None, handles: list[Artist], n_columns: int = 1) -> None:
    """Say what colours mean, at the right of a figure, or of the axes that a user gave."""
    if ax is None:
        figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8, ncols=n_columns)
    else:
        style: dict[str, Any] = {"frameon": False, "fontsize": 8, "ncols": n_columns}
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), **style)


def add_scale_bar(ax: Axes) -> None:
    """Draw a bar of a round length, at most about a third of the panel's width, into the lower left corner."""
    left, right = ax.get_xlim()
    length = round_length(_BAR_SHARE * abs(right - left))
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    bar = AnchoredSizeBar(
        ax.transData,
        length,
        label,
        loc="lower left",
        pad=0.35,
        borderpad=0.4,
        sep=3,
        size_vertical=abs(right - left) / 150,
        color="black",
        fontproperties={"size": 8},  # type: ignore[arg-type]
    )
    bar.patch.set(alpha=0.75, linewidth=0)
    ax.add_artist(bar)


def round_length(longest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50, ... that is not longer.

    Examples
    --------
    >>> round_length(340.0), round_length(1999.0)
    (200.0, 1000.0)
    """
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step * power for step in (1, 2, 5) if step * power <= longest))


def finish(figure: Figure, save: str | Path | None, return_fig: bool, *, ax: Axes | None = None) -> Figure | None:
    """Save, return or show a finished figure; one of which the user gave ``ax`` is neither shown nor closed."""
    if save is not None:
        Path(save).parent.mkdir(parents=True, exist_ok=True)
        write(figure, save)
    if ax is not None:
        return figure if return_fig else None
    if return_fig or save is not None:
        plt.close(figure)  # a notebook would show it a second time
        return figure if return_fig else None
    plt.show()
    return None


def write(figure: Figure, target: str | Path | BinaryIO, *, dpi: float = DPI, format: str | None = None) -> None:
    """Write a figure; text in vector formats stays text, which editors can change, instead of becoming outlines."""
    with plt.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
        figure.savefig(target, dpi=dpi, format=format)
