"""How active gene sets are, over the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.pl._canvas import add_colour_bar, around_zero, beside_image, check_single, draw_raster, finish
from sphistex.pl._places import Places
from sphistex.pl._sources import Lattice, find_table, read_picture
from sphistex.tl._trust import made_how

_MARGIN = 0.02
_FAINT = 0.35
# Scores are shown up to this quantile of their size.
_QUANTILE = 0.99
# Gene sets that are drawn where none are named.
_FIRST = 4


def activity(
    sdata: SpatialData,
    gene_sets: str | Sequence[str] | None = None,
    *,
    table_key: str,
    key: str = "enrichment",
    image_key: str | None = None,
    cmap: str | Colormap = "RdBu_r",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the scores of gene sets in spots or superpixels, beside the image.

    Parameters
    ----------
    sdata
        SpatialData with the table and its image.
    gene_sets
        Names of gene sets; by default the four whose scores vary most.
    table_key
        Table that :func:`sphistex.tl.enrich` scored.
    key
        Name of its result.
    image_key
        The image, where it is not clear.
    cmap
        Colour map; its middle is 0, where a set is as active as the other genes of the table.
    ax
        Axes to draw the scores of one gene set into, as a part of a figure of your own.
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
        If there is no such table, no scores in it, or not of these gene sets.
    ValueError
        If no gene set is named, several are to be drawn into one ``ax``, or the rows of the table have no known place.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=30)
    >>> genes = list(sdata.tables["counts"].var_names)
    >>> sx.tl.enrich(sdata, table_key="counts", gene_sets={"first": genes[:10], "last": genes[-10:]})
    >>> figure = sx.pl.activity(sdata, table_key="counts", return_fig=True)
    >>> [ax.get_title() for ax in figure.axes[:3]]
    ['H&E', 'first', 'last']
    """
    table = find_table(sdata, "table_key", table_key)
    if key not in table.obsm:
        raise KeyError(f"key={key!r}: table {table_key!r} has no scores of that name; sphistex.tl.enrich makes them")
    scores = table.obsm[key]
    names = _chosen(scores, gene_sets)
    check_single(ax, "gene_sets", names)
    try:  # superpixels are pixels of a map, and all others are drawn as disks
        made = made_how(table, table_key)
        lattice = Lattice.of(sdata, table, made)
        places, window, mpp = None, lattice.window, lattice.mpp
        image_key = image_key or made["section"]["image_key"]
    except ValueError:
        places = Places.of(sdata, table, table_key, image_key)
        window, mpp, image_key = places.window, places.mpp, places.image_key
    window = window.padded(_MARGIN)
    picture = read_picture(sdata, image_key, window, mpp)

    figure, axes = beside_image(ax, picture, len(names), window)
    norm = around_zero(scores[names].to_numpy(dtype=float), _QUANTILE)
    for panel, name in zip(axes[-len(names) :], names, strict=True):
        draw_raster(panel, *picture, alpha=_FAINT)
        values = scores[name].to_numpy(dtype=float)
        if places is None:
            raster = _raster(table, values, lattice)
            draw_raster(panel, raster, lattice.window, cmap=cmap, norm=norm, interpolation="none")
        else:
            shown = places.placed & np.isfinite(values)
            places.draw(panel, shown, array=values[shown], cmap=cmap, norm=norm)
        panel.set_title(name.replace("_", " "), fontsize=9)
    add_colour_bar(figure, axes, ScalarMappable(norm, cmap), "activity (t)", "both")
    return finish(figure, save, return_fig, ax=ax)


def _chosen(scores: pd.DataFrame, gene_sets: str | Sequence[str] | None) -> list[str]:
    """Names of the gene sets to draw."""
    if gene_sets is None:
        most = scores.std().sort_values(ascending=False).index[:_FIRST]
        return [name for name in scores.columns if name in most]
    names = [gene_sets] if isinstance(gene_sets, str) else list(gene_sets)
    if not names:
        raise ValueError(f"gene_sets={gene_sets!r}: name at least one of {list(scores.columns)[:10]}")
    if missing := [name for name in names if name not in scores]:
        raise KeyError(f"gene_sets: {missing} were not scored; there are {list(scores.columns)[:20]}")
    return names


def _raster(table: AnnData, values: NDArray, lattice: Lattice) -> NDArray[np.float32]:
    raster = np.full(lattice.shape, np.nan, dtype=np.float32)
    raster[lattice.row_column(table.obsm["spatial"])] = values
    return raster
