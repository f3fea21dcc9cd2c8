"""How patterned genes are before and after super-resolution, and without the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sphistex.pl._canvas import charts, check_single, finish

_COLUMNS = ("gene", "statistic", "before", "after")
_TITLES = {
    "sepal": "Sepal",
    "moran": "Moran's I",
    "geary": "Geary's C (lower: more patterned)",
    "fine": "Finer than the spots",
}
_COLUMNS_OF_PANELS = 2
_INCHES, _INCHES_FOR_NAMES = 3.6, 1.2
_AFTER, _NULL = "tab:blue", "0.6"
# Names beside a panel: where, and how far apart, in its widths and heights.
_NAMES_AT, _NAMES_APART = 1.04, 0.055


def patterns(
    table: pd.DataFrame,
    *,
    n_named: int = 8,
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw each gene's statistics in the spots against those in the superpixels, a panel for each statistic.

    Grey is the null: the same gene in superpixels that the image said nothing about, joined to the gene by a line. A
    null above the diagonal is what smoothing does. Structure finer than the spots is in no spots: it is drawn against
    its null, and genes beyond theirs are filled.

    Parameters
    ----------
    table
        From :func:`sphistex.tl.spatial_patterns`, with or without a null.
    n_named
        At most so many genes of each panel are named: those farthest from their null on the patterned side, or where
        there is none from the diagonal; of what is finer than the spots, only genes beyond their null.
    ax
        Axes to draw one statistic into, as a part of a figure of your own.
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
        If there is nothing to draw, or several statistics are to be drawn into one ``ax``.

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
    drawn = table.assign(null=table["null"] if "null" in table else np.nan)
    fine = drawn["statistic"] == "fine"
    drawn = drawn[drawn["after"].notna() & drawn["before"].where(~fine, drawn["null"]).notna()]
    if drawn.empty:
        raise ValueError("table holds no gene with two values of a statistic to compare: there is nothing to draw")
    statistics = list(drawn["statistic"].unique())
    check_single(ax, "statistics of table", statistics)
    figure, panels = charts(ax, len(statistics), _COLUMNS_OF_PANELS, (_INCHES + _INCHES_FOR_NAMES, _INCHES))
    for panel, statistic in zip(panels, statistics, strict=True):
        found = drawn[drawn["statistic"] == statistic]
        named = _draw_finer(panel, found) if statistic == "fine" else _draw(panel, found)
        _name(panel, found.iloc[named[:n_named]], "null" if statistic == "fine" else "before")
        panel.set_title(_TITLES.get(statistic, statistic), fontsize=10)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    _legend(figure, panels, within=ax is not None)
    return finish(figure, save, return_fig, ax=ax)


def _legend(figure: Figure, panels: list[Axes], *, within: bool) -> None:
    """What colours say, below all panels, or ``within`` axes of the user's, who may have put more into the figure."""
    found = {label: handle for ax in panels for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if within:
        panels[0].legend(list(found.values()), list(found), loc="best", frameon=False, fontsize=8)
    else:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(found)}
        figure.legend(list(found.values()), list(found), frameon=False, fontsize=8, **place)


def _draw(ax: Axes, found: pd.DataFrame) -> NDArray[np.intp]:
    """Superpixels and their null against spots; places of the genes that stand out, the most first."""
    before, after, null = (found[name].to_numpy(float) for name in ("before", "after", "null"))
    judged = np.isfinite(null)
    lines = np.stack([np.stack([before, null], 1), np.stack([before, after], 1)], 1)[judged]
    ax.add_collection(LineCollection(list(lines), colors="0.85", linewidths=0.8, zorder=1))
    if judged.any():
        ax.scatter(before[judged], null[judged], s=14, color=_NULL, linewidths=0, label="without the image", zorder=2)
    ax.scatter(before, after, s=18, color=_AFTER, linewidths=0, label="super-resolved", zorder=3)
    _with_diagonal(ax, np.concatenate([before, after, null[judged]]), "spots", "superpixels")
    sign = -1 if found["statistic"].iloc[0] == "geary" else 1
    more = sign * (after - np.where(judged, null, before))
    order = np.argsort(-more, kind="stable")
    return order[more[order] > 0]


def _draw_finer(ax: Axes, found: pd.DataFrame) -> NDArray[np.intp]:
    """Superpixels against their null; places of the genes beyond it, the farthest first."""
    after, null = found["after"].to_numpy(float), found["null"].to_numpy(float)
    beyond = found["beyond"].to_numpy(bool) if "beyond" in found else np.zeros(len(found), dtype=bool)
    for chosen, face, label in ((~beyond, "none", "not beyond the null"), (beyond, _AFTER, "super-resolved")):
        if chosen.any():
            ax.scatter(null[chosen], after[chosen], s=18, facecolor=face, edgecolor=_AFTER, linewidths=0.8, label=label)
    _with_diagonal(ax, np.concatenate([after, null, [0]]), "superpixels without the image", "superpixels")
    order = np.argsort(null - after, kind="stable")
    return order[beyond[order]]


def _with_diagonal(ax: Axes, values: NDArray[np.float64], x: str, y: str) -> None:
    """The same limits on both axes, around all values."""
    ends = values.min(), values.max()
    margin = 0.05 * (ends[1] - ends[0]) or 0.05
    limits = ends[0] - margin, ends[1] + margin
    ax.plot(limits, limits, color="0.8", linewidth=1, zorder=0)
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel=x, ylabel=y)


def _name(ax: Axes, found: pd.DataFrame, x: str) -> None:
    """Names beside the panel, from low to high, each with a line to its dot; dots lie too close for names."""
    found = found.sort_values("after")
    low, high = ax.get_ylim()
    steps = _NAMES_APART * np.arange(len(found))
    heights = np.maximum.accumulate((found["after"].to_numpy() - low) / (high - low) - steps) + steps
    heights = np.minimum(heights, 1 - steps[::-1])
    for (_, gene), height in zip(found.iterrows(), heights, strict=True):
        ax.annotate(
            gene["gene"],
            (gene[x], gene["after"]),
            xytext=(_NAMES_AT, height),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            fontstyle="italic",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
        )
