"""How well genes are predicted where the model had not looked, beside interpolation of the spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sphistex.metrics.explained import AS_CHANCE, AS_INTERPOLATION, BETTER
from sphistex.pl._canvas import finish, single
from sphistex.pl._sources import find_table

# Ways of judging, as their columns in var begin, and what was held out.
WAYS = {
    "held_out_": "spots left out while fitting",
    "halves_": "other half of the counts",
    "blocks_": "squares of the section left out",
}
_COLOURS = {BETTER: "#228833", AS_INTERPOLATION: "#ccbb44", AS_CHANCE: "#bb5566"}


def validation(
    sdata: SpatialData,
    *,
    key: str = "superres",
    by: str | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw each gene's correlation with counts that the model had not seen, against that of interpolation.

    Genes above the diagonal are predicted better than interpolation of the spots does; the colour is the verdict, which
    knows how much of the difference can be chance.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`.
    key
        Name of the result.
    by
        What they are judged by: ``"held_out"``, spots that were left out while fitting; or ``"halves"`` or
        ``"blocks"`` of :func:`sphistex.tl.validate`. By default the strictest that there is: blocks, halves, held out.
    ax
        Axes to draw into, of a figure of your own; by default a new figure.
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
        If there is no such result, or its genes were not judged in that way.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=900, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> figure = sx.pl.validation(sdata, return_fig=True)
    >>> figure.axes[0].get_xlabel()
    'r of interpolation'
    """
    var = find_table(sdata, "key", key).var
    found = {prefix: scores for prefix in WAYS if (scores := scores_of(var, prefix)) is not None}
    prefix = next(reversed(found), "") if by is None else f"{by}_"
    if prefix not in found:
        raise KeyError(
            f"by={by!r}: the genes of {key!r} were judged by {[name.rstrip('_') for name in found]}; "
            "sphistex.tl.validate judges them by halves and blocks"
        )
    scores = found[prefix]
    figure, panel = single(ax, 4, 4)
    for verdict, colour in _COLOURS.items():
        some = scores[scores["verdict"] == verdict]
        label = f"{verdict} ({len(some)})"
        panel.scatter(some["interpolation"], some["pearson"], s=14, color=colour, alpha=0.7, linewidths=0, label=label)
    ends = scores[["interpolation", "pearson"]].to_numpy(dtype=float)
    low, high = min(0.0, float(np.nanmin(ends, initial=0))) - 0.03, max(0.1, float(np.nanmax(ends, initial=0))) + 0.03
    panel.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
    panel.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="r of interpolation", ylabel="r of sphistex")
    panel.set_title(f"Judged by the {WAYS[prefix]}", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="lower right")
    return finish(figure, save, return_fig, ax=ax)


def scores_of(var: pd.DataFrame, prefix: str) -> pd.DataFrame | None:
    """Columns of :func:`sphistex.metrics.explained` of the genes that were judged in one of the ``WAYS``; or None."""
    if f"{prefix}pearson" not in var:
        return None
    bare = prefix == "held_out_"  # those which every result has are named without
    names = {name: f"{prefix}{name}" for name in ("pearson", "interpolation", "ceiling")}
    names |= {name: name if bare else f"{prefix}{name}" for name in ("explained_share", "verdict")}
    scores = var[list(names.values())].set_axis(list(names), axis=1)
    return scores[scores["pearson"].notna()]
