"""How patterned genes are before and after super-resolution, and without the image."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sphistex.pl._canvas import DPI, finish

_COLUMNS = ("gene", "statistic", "before", "after")
_TITLES = {"sepal": "Sepal", "moran": "Moran's I", "geary": "Geary's C (lower: more patterned)"}
_INCHES = 3.6
_AFTER, _NULL = "tab:blue", "0.6"


def patterns(
    table: pd.DataFrame,
    *,
    n_named: int = 8,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw each gene's statistics in the spots against those in the superpixels, a panel for each statistic.

    Grey is the null: the same gene in superpixels that the image said nothing about, joined to the gene by a line. Only
    what a line adds is owed to the image; a null above the diagonal is what smoothing does.

    Parameters
    ----------
    table
        From :func:`sphistex.tl.spatial_patterns`, with or without a null.
    n_named
        At most so many genes of each panel are named: those farthest from their null on the patterned side, or where
        there is none from the diagonal.
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
        If a column is missing.
    ValueError
        If there is nothing to draw.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"gene": ["A", "B"], "statistic": "moran", "before": [0.2, 0.5], "after": [0.6, 0.7]})
    >>> figure = patterns(table, return_fig=True)
    >>> len(figure.axes)
    1
    """
    if missing := [name for name in _COLUMNS if name not in table]:
        raise KeyError(
            f"table lacks the columns {missing}, it has {list(table)}: pass what sphistex.tl.spatial_patterns returns"
        )
    drawn = table.assign(null=table["null"] if "null" in table else np.nan).dropna(subset=["before", "after"])
    if drawn.empty:
        raise ValueError("table holds no gene with a statistic both before and after: there is nothing to draw")
    statistics = list(drawn["statistic"].unique())
    size = _INCHES * len(statistics) + 0.3, _INCHES + 0.4
    figure, axes = plt.subplots(
        1, len(statistics), squeeze=False, figsize=size, layout="constrained", dpi=DPI, facecolor="white"
    )
    for ax, statistic in zip(axes[0], statistics, strict=True):
        _draw(ax, drawn[drawn["statistic"] == statistic], _TITLES.get(statistic, statistic), n_named)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return finish(figure, save, return_fig)


def _draw(ax: Axes, found: pd.DataFrame, title: str, n_named: int) -> None:
    before, after, null = (found[name].to_numpy(float) for name in ("before", "after", "null"))
    judged = np.isfinite(null)
    ends = np.nanmin([before, after, null]), np.nanmax([before, after, null])
    margin = 0.05 * (ends[1] - ends[0]) or 0.05
    limits = ends[0] - margin, ends[1] + margin
    ax.plot(limits, limits, color="0.8", linewidth=1, zorder=0)
    lines = np.stack([np.stack([before, null], 1), np.stack([before, after], 1)], 1)[judged]
    ax.add_collection(LineCollection(list(lines), colors="0.85", linewidths=0.8, zorder=1))
    if judged.any():
        ax.scatter(before[judged], null[judged], s=14, color=_NULL, linewidths=0, label="without the image", zorder=2)
    ax.scatter(before, after, s=18, color=_AFTER, linewidths=0, label="super-resolved", zorder=3)
    for place in _farthest(found, n_named):
        ax.annotate(
            found["gene"].iloc[place],
            (before[place], after[place]),
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=7,
            fontstyle="italic",
        )
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel="spots", ylabel="superpixels")
    ax.set_title(title, fontsize=10)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _farthest(found: pd.DataFrame, n: int) -> NDArray[np.intp]:
    """Places of the genes that are most patterned beyond their null, or where there is none beyond the spots."""
    beyond = found["after"] - found["null"].fillna(found["before"])
    beyond = (-beyond if found["statistic"].iloc[0] == "geary" else beyond).to_numpy()
    order = np.argsort(-beyond, kind="stable")[:n]
    return order[beyond[order] > 0]
