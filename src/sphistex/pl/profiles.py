"""Genes along the way across a border."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sphistex.pl._canvas import charts, check_single, finish
from sphistex.tl import profiles as measured_profiles

_MOST_COLUMNS = 4
_PANEL_INCHES = 2.4, 2.0


def profiles(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    table_key: str = "superres",
    distance_key: str = "distance_um",
    bin_um: float = 16.0,
    max_um: float | None = 200.0,
    block_um: float = 200.0,
    level: float = 0.95,
    layer: str | None = None,
    colour: str = "tab:blue",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the mean of each gene along the distance from a border, with its confidence band; a panel for each gene.

    Bins in which a single square has superpixels have no band.

    Parameters
    ----------
    sdata
        SpatialData with a table to which :func:`sphistex.tl.interface` added distances.
    genes
        One gene or several.
    table_key, distance_key, bin_um, max_um, block_um, level, layer
        As in :func:`sphistex.tl.profiles`.
    colour
        Of the lines.
    ax
        Axes to draw the profile of one gene into, as a part of a figure of your own.
    save
        File to save the figure to; its ending says the format.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if ``return_fig``.

    Raises
    ------
    KeyError, ValueError
        As :func:`sphistex.tl.profiles`; a ValueError also if several genes are to be drawn into one ``ax``.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> sx.tl.interface(sdata, ("compartment", "tumour"), table_key="truth")
    >>> genes = list(sdata.tables["truth"].var_names[:2])
    >>> figure = sx.pl.profiles(sdata, genes, table_key="truth", return_fig=True)
    >>> [ax.get_title() for ax in figure.axes] == genes
    True
    """
    check_single(ax, "genes", [genes] if isinstance(genes, str) else list(genes))
    found = measured_profiles(
        sdata,
        genes,
        table_key=table_key,
        distance_key=distance_key,
        bin_um=bin_um,
        max_um=max_um,
        block_um=block_um,
        level=level,
        layer=layer,
    )
    names = list(found["gene"].unique())
    figure, panels = charts(ax, len(names), _MOST_COLUMNS, _PANEL_INCHES)
    for panel, name in zip(panels, names, strict=True):
        _draw(panel, found[found["gene"] == name], colour)
        panel.set_title(name, fontsize=10, fontstyle="italic")
    x, y = "µm from the border, inside below 0", "counts per superpixel" if layer is None else layer
    if ax is None:
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)
    else:
        ax.set_xlabel(x, fontsize=9)
        ax.set_ylabel(y, fontsize=9)
    return finish(figure, save, return_fig, ax=ax)


def _draw(ax: Axes, profile: pd.DataFrame, colour: str) -> None:
    at = profile["distance_um"]
    ax.axvline(0, color="0.4", linewidth=0.8, linestyle="--")
    ax.fill_between(at, profile["low"], profile["high"], color=colour, alpha=0.25, linewidth=0)
    ax.plot(at, profile["mean"], color=colour, linewidth=1.4)
    if (profile["mean"] >= 0).all():
        ax.set_ylim(bottom=0, top=max(1e-9, 1.08 * float(np.nanmax(profile[["mean", "high"]].to_numpy()))))
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
