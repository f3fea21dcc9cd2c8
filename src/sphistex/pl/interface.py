"""A region's border over the image, and how far from it everything lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sphistex._checks import is_number
from sphistex.pl._borders import draw_border
from sphistex.pl._canvas import add_colour_bar, beside_image, draw_raster, finish
from sphistex.pl._sources import Lattice, find_table, read_picture
from sphistex.tl._trust import made_how

_MARGIN = 0.02


def interface(
    sdata: SpatialData,
    *,
    table_key: str = "superres",
    distance_key: str = "distance_um",
    max_um: float = 100.0,
    image_key: str | None = None,
    colour: str = "black",
    cmap: str | Colormap = "RdBu",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the border of a region over the image, and the distance of each superpixel from it.

    Parameters
    ----------
    sdata
        SpatialData with a result to which :func:`sphistex.tl.interface` added distances, and its image.
    table_key, distance_key
        Name of the table, and of its column of distances.
    max_um
        Ends of the colour scale, on both sides.
    image_key
        The image, where it is not clear.
    colour
        Of the border.
    cmap
        Colour map; its middle is the border.
    ax
        Axes to draw the distances into, without the image beside them, as a part of a figure of your own.
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
        If the table, the column or the image does not exist.
    ValueError
        If the table is no result, or ``max_um`` no distance.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> gene = sdata.tables["superres"].to_df()[model.genes[0]]
    >>> sdata.tables["superres"].obs["high"] = (gene > gene.median()).to_numpy()
    >>> sx.tl.interface(sdata, "high")
    >>> figure = sx.pl.interface(sdata, return_fig=True)
    >>> [ax.get_title() for ax in figure.axes[:2]]
    ['H&E', 'Distance from the border']
    """
    table = find_table(sdata, "table_key", table_key)
    if distance_key not in table.obs:
        raise KeyError(
            f"distance_key={distance_key!r} is no column of obs of table {table_key!r}: make it with "
            "sphistex.tl.interface"
        )
    distance = table.obs[distance_key].to_numpy(float)
    if not (is_number(max_um) and max_um > 0):
        raise ValueError(f"max_um={max_um!r} must be a positive number of µm")
    made = made_how(table, table_key)
    lattice = Lattice.of(sdata, table, made)
    window = lattice.window.padded(_MARGIN)
    picture = (
        read_picture(sdata, image_key or made["section"]["image_key"], window, lattice.mpp) if ax is None else None
    )
    raster = lattice.raster(table.obsm["spatial"], distance)

    figure, axes = beside_image(ax, picture, 1, window)
    norm = Normalize(-max_um, max_um)
    draw_raster(axes[-1], raster, lattice.window, cmap=cmap, norm=norm)
    for panel in axes:
        draw_border(panel, raster < 0, np.isfinite(raster), lattice.window, colors=colour, linewidths=0.8)
    axes[-1].set_title("Distance from the border", fontsize=10)
    add_colour_bar(figure, axes, ScalarMappable(norm, cmap), "µm, inside below 0", "both")
    return finish(figure, save, return_fig, ax=ax)
