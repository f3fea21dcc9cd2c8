"""Why a section is said to have a high risk: what each position adds, over the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sphistex.pl._canvas import add_colour_bar, around_zero, beside_image, draw_raster, finish
from sphistex.pl._places import Places
from sphistex.pl._sources import find_table, read_picture

if TYPE_CHECKING:
    from sphistex.tl import OutcomeModel

_MARGIN = 0.02
_FAINT = 0.35
_WHAT = {"survival": "log hazard", "response": "log odds of a response"}


def attribution(
    sdata: SpatialData,
    model: OutcomeModel,
    *,
    image_key: str | None = None,
    cmap: str | Colormap = "RdBu_r",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw what each position of a section adds to the risk, beside the image.

    Parameters
    ----------
    sdata
        A section with the table that the model was fitted to.
    model
        What :func:`sphistex.tl.fit_outcome` returned.
    image_key
        The image, where it is not clear.
    cmap
        Colour map; its middle is 0.
    ax
        Axes to draw the attribution into, without the image beside it, as a part of a figure of your own.
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
        If the table or the image does not exist.
    ValueError
        If the positions of the table have no known place.

    Examples
    --------
    >>> import scanpy as sc
    >>> import sphistex as sx
    >>> sections, clinical = sx.datasets.simulate_cohort(n_patients=8, size_um=400, n_genes=20)
    >>> for section in sections.values():
    ...     counts = section.tables["counts"]
    ...     sc.pp.normalize_total(counts, target_sum=1e4)
    ...     sc.pp.log1p(counts)
    >>> clinical["response"] = [0, 1] * 4
    >>> model = sx.tl.fit_outcome(
    ...     sections, clinical, response="response", table_key="counts", folds=2, n_models=1, n_permutations=0
    ... )
    >>> figure = sx.pl.attribution(sections["S001"], model, return_fig=True)
    >>> [ax.get_title() for ax in figure.axes[:2]]
    ['H&E', 'Attribution']
    """
    table_key = str(model.columns["table_key"])
    table = find_table(sdata, "table_key", table_key)
    places = Places.of(sdata, table, table_key, image_key)
    window = places.window.padded(_MARGIN)
    picture = read_picture(sdata, places.image_key, window, places.mpp)
    shares = model.attribution(sdata).to_numpy()
    norm = around_zero(shares)
    figure, axes = beside_image(ax, picture, 1, window)
    draw_raster(axes[-1], *picture, alpha=_FAINT)
    places.draw(axes[-1], places.placed, array=shares[places.placed], cmap=cmap, norm=norm)
    axes[-1].set_title("Attribution", fontsize=10)
    add_colour_bar(figure, axes, ScalarMappable(norm, cmap), f"added to the {_WHAT[model.kind]}")
    return finish(figure, save, return_fig, ax=ax)
