"""Expression that was predicted from the image, beside the measured one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.metrics import pearson
from sphistex.pl._canvas import (
    add_colour_bar,
    add_scale_bar,
    check_single,
    draw_raster,
    figure_of,
    finish,
    frame,
    panels,
)
from sphistex.pl._places import Places, joined
from sphistex.pl._sources import check_genes, find_table, read_picture
from sphistex.pl.expression import colour_scale
from sphistex.tl._expression import Expression

_MARGIN = 0.02
# How strongly the image shows under the spots.
_FAINT = 0.35


def histology(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    table_key: str = "histology",
    measured_key: str | None = None,
    image_key: str | None = None,
    cmap: str | Colormap = "viridis",
    vmin: float | str = "p1",
    vmax: float | str = "p99",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the image, the predicted and, where there is one, the measured map of each gene side by side.

    All panels show the same part of the section at the same scale, and the maps of a gene share one colour scale: log1p
    of counts scaled to 10,000 per spot. The title of a measured map says the Pearson correlation over the spots that
    were measured and predicted: each predicted spot with the nearest measured one, less than half of the distance
    between spots away.

    Parameters
    ----------
    sdata
        SpatialData with the image and the tables.
    genes
        One gene or several; each gets a row.
    table_key
        Table of predicted expression.
    measured_key
        Table of the measured spots, with counts or their logarithms.
    image_key
        The image, where it is not clear.
    cmap
        Colour map.
    vmin, vmax
        Ends of the colour scale, or percentiles such as ``"p99"`` of predicted and measured spots together.
    ax
        Axes to draw the predicted map of one gene into, without the other panels, as a part of a figure of your own.
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
        If a table or a gene does not exist.
    ValueError
        If the spots of a table have no known place, the limits make no sense, or several maps are to be drawn into one
        ``ax``.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> genes = sdata.tables["counts"].var_names[:2]
    >>> figure = sx.pl.histology(sdata, genes, table_key="counts", return_fig=True)
    >>> len(figure.axes)  # two rows of two panels, each with a colour bar
    6
    """
    table = find_table(sdata, "table_key", table_key)
    names = check_genes(table, table_key, genes)
    check_single(ax, "genes", names)
    if ax is not None and measured_key is not None:
        raise ValueError(f"measured_key={measured_key!r}: ax= takes the predicted map alone; leave one of them out")
    sources = [(Places.of(sdata, table, table_key, image_key), Expression.of(table, table_key), "Predicted")]
    if measured_key is not None:
        measured = find_table(sdata, "measured_key", measured_key)
        check_genes(measured, measured_key, names)
        places = Places.of(sdata, measured, measured_key, sources[0][0].image_key)
        sources.append((places, Expression.of(measured, measured_key), "Measured"))
    first, last = sources[0][0], sources[-1][0]
    window = joined(first.window, last.window).padded(_MARGIN)
    maps = [[expression.gene(gene) for _, expression, _ in sources] for gene in names]
    norms = [colour_scale(spots, spots, vmin, vmax) for spots in map(np.concatenate, maps)]
    picture = read_picture(sdata, first.image_key, window, first.mpp)
    pairs = first.nearest(last)

    if ax is None:
        figure, axes = panels(len(names), 1 + len(sources), window)
        axes[0, 0].set_title("H&E", fontsize=10)
        for panel in axes[:, 0]:
            draw_raster(panel, *picture)
    else:
        figure, axes = figure_of(ax), np.array([[ax]])
        frame(ax, window)
    for row, gene, values, norm in zip(axes, names, maps, norms, strict=True):
        row[0].set_ylabel(gene, fontsize=11, fontstyle="italic")
        add_scale_bar(row[0])
        for panel, (places, _, title), shown in zip(row[-len(sources) :], sources, values, strict=True):
            draw_raster(panel, *picture, alpha=_FAINT)
            places.draw(panel, places.placed, array=shown[places.placed], cmap=cmap, norm=norm)
            panel.set_title(title, fontsize=10)
        if len(sources) > 1:
            row[2].set_title(f"Measured, {_agreement(values, pairs)}", fontsize=10)
        add_colour_bar(figure, row.tolist(), ScalarMappable(norm, cmap), "log expression", "both")
    return finish(figure, save, return_fig, ax=ax)


def _agreement(values: list[NDArray], pairs: tuple[NDArray[np.intp], NDArray[np.intp]]) -> str:
    """Correlation of predicted and measured spots, as it is written."""
    predicted, measured = (found[rows].astype(float) for found, rows in zip(values, pairs, strict=True))
    if len(predicted) < 3:
        return "no spots in common"
    r = float(pearson(predicted[:, None], measured[:, None])[0])
    return f"r = {r:.2f}" if np.isfinite(r) else "without variation"
