"""Gene sets by group: how many markers are in each, and how far beyond chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.pl._canvas import finish, single
from sphistex.pl._sources import find_table

# -log10 q beyond which dots do not grow, and the area of such a dot in square points.
_MOST_LOG_Q, _LARGEST = 10.0, 220.0
_CERTAIN = 0.05


def enrichment(
    sdata: SpatialData,
    *,
    table_key: str,
    key: str = "enrichment",
    n_sets: int = 20,
    cmap: str = "viridis",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw which gene sets the markers of each group are rich in, as dots: groups side by side, a row per gene set.

    A dot's area is -log10 of q, up to 10, its colour the log odds ratio; dots with q of no more than 0.05 have a black
    edge.

    Parameters
    ----------
    sdata
        SpatialData with the table.
    table_key
        Table that :func:`sphistex.tl.enrich` compared groups in.
    key
        Name of its result.
    n_sets
        At most so many gene sets, those with the smallest q in any group.
    cmap
        Colour map.
    ax
        Axes to draw into, as a part of a figure of your own.
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
        If there is no such table, or no result of groups in it.
    ValueError
        If ``n_sets`` is less than 1.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=1200, n_genes=60)
    >>> table = sdata.tables["counts"]
    >>> table.obs["side"] = ["left" if column < 10 else "right" for column in table.obs["array_col"]]
    >>> sets = {kind: list(table.var_names[table.var["kind"] == kind]) for kind in ("marker", "gradient")}
    >>> sx.tl.enrich(sdata, table_key="counts", gene_sets=sets, groupby="side")
    >>> figure = sx.pl.enrichment(sdata, table_key="counts", return_fig=True)
    """
    table = find_table(sdata, "table_key", table_key)
    if "over_representation" not in table.uns.get(key, {}):
        raise KeyError(
            f"key={key!r}: table {table_key!r} has no over-representation of that name; sphistex.tl.enrich makes it "
            "where groupby= is given"
        )
    if n_sets < 1:
        raise ValueError(f"n_sets={n_sets!r} must be at least 1")
    found = table.uns[key]["over_representation"]
    found = found.assign(group=found["group"].astype("category"))
    groups, sets = list(found["group"].cat.categories), _best_sets(found, n_sets)
    found = found[found["gene_set"].isin(sets)]

    longest = max(map(len, sets))
    size = 1.6 + 0.075 * longest + 0.55 * len(groups), max(2.6, 1.0 + 0.3 * len(sets))
    figure, panel = single(ax, *size)
    dots = panel.scatter(
        [groups.index(group) for group in found["group"]],
        [sets.index(name) for name in found["gene_set"]],
        s=_area(found["q"]),
        c=found["log_odds_ratio"],
        cmap=cmap,
        vmin=0,
        vmax=max(1.0, float(found["log_odds_ratio"].max())),
        edgecolors=np.where(found["q"] <= _CERTAIN, "black", "none").tolist(),
        linewidths=1,
    )
    _frame(panel, groups, sets)
    _legends(figure, panel, dots, within=ax is not None)
    return finish(figure, save, return_fig, ax=ax)


def _best_sets(found: pd.DataFrame, n_sets: int) -> list[str]:
    """Sets with the smallest q in any group; those of one group stand together."""
    best = found.sort_values(["q", "p", "gene_set"]).drop_duplicates("gene_set").head(n_sets)
    return best.sort_values(["group", "q", "p"], kind="stable")["gene_set"].tolist()


def _area(q: pd.Series | NDArray) -> NDArray[np.float64]:
    log_q = -np.log10(np.maximum(np.asarray(q, dtype=float), 10.0**-_MOST_LOG_Q))
    return 6.0 + (_LARGEST - 6.0) * log_q / _MOST_LOG_Q


def _frame(ax: Axes, groups: list[str], sets: list[str]) -> None:
    ax.set_xticks(range(len(groups)), groups, fontsize=9, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(sets)), sets, fontsize=8)
    ax.set(xlim=(-0.6, len(groups) - 0.4), ylim=(len(sets) - 0.4, -0.6))
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[:].set_color("0.8")
    ax.tick_params(length=0)


def _legends(figure: Figure, ax: Axes, dots: PathCollection, *, within: bool) -> None:
    """What colours and areas say, at the right of a figure; or ``within`` axes of the user's."""
    bar = figure.colorbar(dots, ax=ax, shrink=0.5, aspect=14, anchor=(0, 0), pad=0.03)
    bar.set_label("log odds ratio", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    shown = (0.05, 1e-3, 1e-6)
    handles = [ax.scatter([], [], s=_area(np.array([q]))[0], color="0.5", label=f"{q:g}") for q in shown]
    style: dict[str, Any] = {"title": "q", "frameon": False, "fontsize": 8, "title_fontsize": 8}
    if within:
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), **style)
    else:
        figure.legend(handles=handles, loc="outside right upper", **style)
