"""Aggregates of a signature over the image, beside its score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sphistex.pl._canvas import add_colour_bar, beside_image, draw_raster, finish
from sphistex.pl._sources import Lattice, find_table, read_picture
from sphistex.tl._trust import made_how

_MARGIN = 0.02
# Beyond so many aggregates numbers hide what they name.
_NUMBERED = 30


def aggregates(
    sdata: SpatialData,
    key: str = "aggregates",
    *,
    image_key: str | None = None,
    colour: str = "black",
    cmap: str | Colormap = "viridis",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the outlines of aggregates over the image, and over the score that they were found by.

    Parameters
    ----------
    sdata
        SpatialData with what :func:`sphistex.tl.aggregates` added, and the image.
    key
        Name of it.
    image_key
        The image, where it is not clear.
    colour
        Of the outlines over the image; over the score they are white.
    cmap
        Colour map of the score.
    ax
        Axes to draw the score and the outlines into, without the image, as a part of a figure of your own.
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
        If nothing of that name was added, or the image does not exist.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=60)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> kinds = sdata.tables["superres"].var["cell_type"]
    >>> sx.tl.aggregates(sdata, list(kinds.index[kinds == "lymphocyte"]), threshold=1.0)
    >>> figure = sx.pl.aggregates(sdata, return_fig=True)
    >>> figure.axes[0].get_title()
    'H&E'
    """
    made = sdata.attrs.get("sphistex", {}).get(key, {})
    if made.get("made_by") != "aggregates":
        raise KeyError(f"key={key!r} is not what sphistex.tl.aggregates added: shapes are {list(sdata.shapes)}")
    table_key = str(made["table_key"])
    table = find_table(sdata, "table_key", table_key)
    if (column := f"{key}_score") not in table.obs:
        raise KeyError(f"key={key!r}: table {table_key!r} has no column {column!r} any more: find aggregates again")
    result = made_how(table, table_key)
    lattice = Lattice.of(sdata, table, result)
    window = lattice.window.padded(_MARGIN)
    picture = (
        read_picture(sdata, image_key or result["section"]["image_key"], window, lattice.mpp) if ax is None else None
    )
    raster = lattice.raster(table.obsm["spatial"], table.obs[column].to_numpy(float))
    norm = Normalize(*np.nanpercentile(raster, [1, 99.5]))

    figure, axes = beside_image(ax, picture, 1, window)
    draw_raster(axes[-1], raster, lattice.window, cmap=cmap, norm=norm)
    n_found = 0
    if key in sdata.shapes:
        outlines = sdata.shapes[key].geometry
        n_found = len(outlines)
        for panel in axes:
            _outline(panel, outlines.to_numpy(), lattice.mpp, "white" if panel is axes[-1] else colour)
        if n_found <= _NUMBERED:
            _number(axes[0], outlines, lattice.mpp)
    axes[-1].set_title(f"Score of {len(made['genes'])} genes, {n_found} aggregate{'s' * (n_found != 1)}", fontsize=10)
    bar = add_colour_bar(figure, axes, ScalarMappable(norm, cmap), "mean z-score", "both")
    bar.axhline(float(made["threshold"]), color="white", linewidth=1.2)
    return finish(figure, save, return_fig, ax=ax)


def _outline(ax: Axes, polygons: np.ndarray, mpp: float, colour: str) -> None:
    rings = shapely.get_rings(polygons)
    lines = LineCollection([shapely.get_coordinates(ring) * mpp for ring in rings], colors=colour, linewidths=0.9)
    ax.add_collection(lines, autolim=False)


def _number(ax: Axes, outlines: object, mpp: float) -> None:
    """Write the number of each aggregate beside its upper right corner."""
    for name, (_, top, right, _) in zip(outlines.index, outlines.bounds.to_numpy() * mpp, strict=True):  # type: ignore[attr-defined]
        text = ax.text(right, top, str(name), fontsize=7, va="bottom", ha="left")
        text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])
