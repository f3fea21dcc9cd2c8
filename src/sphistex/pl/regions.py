"""Spots coloured by what they belong to: regions, subtypes, clusters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from spatialdata import SpatialData

from sphistex.pl._canvas import add_legend, beside_image, check_single, draw_raster, finish
from sphistex.pl._groups import find_groups, group_colours
from sphistex.pl._places import Places, joined
from sphistex.pl._sources import find_table, read_picture

_MARGIN = 0.02
# How strongly the image shows under the spots, and the spots over it.
_FAINT, _OPAQUE = 0.6, 0.85


def regions(
    sdata: SpatialData,
    column: str = "predicted_region",
    *,
    table_key: str = "histology",
    measured_column: str | None = None,
    measured_key: str | None = None,
    image_key: str | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the image, and over it the spots coloured by a column: regions, subtypes, clusters.

    Parameters
    ----------
    sdata
        SpatialData with the image and the table.
    column
        Column of ``obs`` with names, such as ``"predicted_region"`` of :func:`sphistex.tl.predict_histology` or
        ``"subtype"`` of :func:`sphistex.tl.tumour_subtypes`. Spots without a value are not drawn.
    table_key
        Name of the table.
    measured_column, measured_key
        Column, and the table that it is in (by default the same), to draw beside it, such as a pathologist's
        annotation. What has the same name has the same colour.
    image_key
        The image, where it is not clear.
    palette
        Colours of some or all names; by default those of ``uns["<column>_colors"]``, as scanpy keeps them, or a colour
        map of Matplotlib's.
    ax
        Axes to draw the spots of ``column`` into, as a part of a figure of your own.
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
        If a table or a column does not exist.
    ValueError
        If a column holds numbers, the spots of a table have no known place, or two columns are to be drawn into one
        ``ax``.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> spots = sdata.tables["counts"].obs
    >>> spots["side"] = ["left" if column < 8 else "right" for column in spots["array_col"]]
    >>> figure = sx.pl.regions(sdata, "side", table_key="counts", return_fig=True)
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['left', 'right']
    """
    table = find_table(sdata, "table_key", table_key)
    check_single(ax, "column, measured_column", [name for name in (column, measured_column) if name is not None])
    groups = [find_groups(table, table_key, "column", column)]
    places = [Places.of(sdata, table, table_key, image_key)]
    tables = [(table, column)]
    if measured_column is not None:
        measured_key = measured_key or table_key
        measured = find_table(sdata, "measured_key", measured_key)
        groups.append(find_groups(measured, measured_key, "measured_column", measured_column))
        places.append(Places.of(sdata, measured, measured_key, places[0].image_key))
        tables.append((measured, measured_column))
    colours = group_colours(groups, tables, palette)
    window = joined(places[0].window, places[-1].window).padded(_MARGIN)
    picture = read_picture(sdata, places[0].image_key, window, places[0].mpp)

    figure, axes = beside_image(ax, picture, len(groups), window)
    for panel, group, place, (_, title) in zip(axes[-len(groups) :], groups, places, tables, strict=True):
        draw_raster(panel, *picture, alpha=_FAINT)
        _draw(panel, group, place, colours)
        panel.set_title(title.replace("_", " "), fontsize=10)
    disk = partial(Line2D, [], [], marker="o", ls="", ms=6)
    add_legend(figure, ax, [disk(color=colour, label=name) for name, colour in colours.items()])
    return finish(figure, save, return_fig, ax=ax)


def _draw(ax: Axes, groups: pd.Series, places: Places, colours: dict[str, str]) -> None:
    placed = groups.notna().to_numpy() & places.placed
    places.draw(ax, placed, facecolors=[colours[name] for name in groups[placed]], alpha=_OPAQUE)
