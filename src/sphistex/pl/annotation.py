"""Superpixels coloured by what they belong to, over the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from spatialdata import SpatialData

from sphistex.pl._canvas import add_legend, beside_image, check_single, draw_raster, finish
from sphistex.pl._groups import find_groups, group_colours
from sphistex.pl._sources import Lattice, find_table, read_picture
from sphistex.tl._trust import made_how

_MARGIN = 0.02
# How strongly the regions show over the image.
_OPAQUE = 0.75
# Labels in a column of the legend.
_PER_COLUMN = 20


def annotation(
    sdata: SpatialData,
    columns: str | Sequence[str] = "annotation",
    *,
    table_key: str = "superres",
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the image, and beside it the superpixels of a result coloured by columns, over the image.

    Parameters
    ----------
    sdata
        SpatialData with the image and the result.
    columns
        Columns of ``obs`` with names, such as those of :func:`sphistex.tl.annotate` and
        :func:`sphistex.tl.transfer_annotation`; each gets a panel. What has the same name has the same colour.
        Superpixels without a value show the image.
    table_key
        Name of the result.
    palette
        Colours of some or all names; by default those of ``uns["<column>_colors"]``, as scanpy keeps them, or a colour
        map of Matplotlib's.
    ax
        Axes to draw the superpixels of one column into, as a part of a figure of your own.
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
        If there is no such table or column.
    ValueError
        If the table is no result, a column holds numbers, or several are to be drawn into one ``ax``.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> sx.tl.annotate(sdata, n_clusters=3)
    >>> figure = sx.pl.annotation(sdata, return_fig=True)
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['1', '2', '3']
    """
    table = find_table(sdata, "table_key", table_key)
    made = made_how(table, table_key)
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names:
        raise ValueError(f"columns={columns!r}: name at least one column of table {table_key!r}")
    check_single(ax, "columns", names)
    groups = [find_groups(table, table_key, "columns", name) for name in names]
    colours = group_colours(groups, [(table, name) for name in names], palette)
    lattice = Lattice.of(sdata, table, made)
    window = lattice.window.padded(_MARGIN)
    picture = read_picture(sdata, made["section"]["image_key"], window, lattice.mpp)

    figure, axes = beside_image(ax, picture, len(groups), window)
    place = lattice.row_column(table.obsm["spatial"])
    for panel, group, name in zip(axes[-len(groups) :], groups, names, strict=True):
        draw_raster(panel, *picture)
        _draw(panel, group, place, lattice, colours)
        panel.set_title(name.replace("_", " "), fontsize=10)
    handles: list[Artist] = [Patch(color=colour, label=name) for name, colour in colours.items()]
    add_legend(figure, ax, handles, -(-len(handles) // _PER_COLUMN))
    return finish(figure, save, return_fig, ax=ax)


def _draw(ax: Axes, group: pd.Series, place: tuple, lattice: Lattice, colours: Mapping[str, str]) -> None:
    """Squares in the colour of their group; nothing where there is none."""
    rgba = np.array([to_rgba(colours[name], _OPAQUE) for name in group.cat.categories] + [(0, 0, 0, 0)])
    raster = np.zeros((*lattice.shape, 4), dtype=np.float32)
    raster[place] = rgba[group.cat.codes]
    draw_raster(ax, raster, lattice.window, interpolation="none")
