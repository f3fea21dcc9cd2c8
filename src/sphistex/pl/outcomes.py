"""What became of patients: survival of risk groups, and how well responses are told apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import CensoredData, ecdf, logrank
from sklearn.metrics import roc_auc_score, roc_curve

from sphistex.pl._canvas import DPI, finish, single

if TYPE_CHECKING:
    from sphistex.tl import OutcomeModel

_COLOURS = ("#ee6677", "#4477aa", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def kaplan_meier(
    source: OutcomeModel | pd.DataFrame,
    *,
    by: str = "network_group",
    time: str = "time",
    event: str = "event",
    time_label: str = "time",
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the survival of groups of patients, with the numbers at risk below and the p value of a log-rank test.

    Parameters
    ----------
    source
        An outcome model, whose patients are grouped by the risk that was predicted when they were left out; or any
        table with one row for each patient.
    by
        Column with the groups; of an outcome model ``"network_group"`` or ``"pooled_group"``.
    time, event
        Columns with the time until the event or until last seen, and whether there was one.
    time_label
        Label of the time axis, with its unit.
    save
        File to save the figure to; its ending says the format.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if ``return_fig``. The p value is left out unless there are two groups.

    Raises
    ------
    KeyError
        If a column does not exist.

    References
    ----------
    Kaplan and Meier, J. Am. Stat. Assoc. 1958.

    Examples
    --------
    >>> patients = pd.DataFrame({"time": [1, 2, 5, 9], "event": [1, 1, 1, 0], "arm": ["a", "a", "b", "b"]})
    >>> figure = kaplan_meier(patients, by="arm", return_fig=True)
    >>> [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    ['a', 'b']
    """
    table = _columns(source, [by, time, event])
    groups = {
        str(name): (rows[time].to_numpy(dtype=float), rows[event].to_numpy() == 1)
        for name, rows in table.groupby(by, observed=True)
    }
    figure, (ax, below) = plt.subplots(
        2,
        1,
        sharex=True,
        figsize=(5, 3.4 + 0.22 * len(groups)),
        height_ratios=(3.2, 0.3 + 0.22 * len(groups)),
        layout="constrained",
        dpi=DPI,
        facecolor="white",
    )
    for (name, patients), colour in zip(groups.items(), _cycled(len(groups)), strict=True):
        _draw_survival(ax, name, *patients, colour)
    end = float(table[time].max())
    ax.set(ylim=(0, 1.03), xlim=(0, 1.02 * end), ylabel="share surviving")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, title=by.replace("_", " "), title_fontsize=8, loc="upper right")
    if len(groups) == 2:
        p = logrank(*(_censored(*patients) for patients in groups.values())).pvalue
        ax.set_title(f"log-rank p = {p:.2g}", fontsize=8, loc="right")
    _draw_at_risk(below, table, by, time, list(groups), end)
    below.set_xlabel(time_label)
    return finish(figure, save, return_fig)


def roc(
    source: OutcomeModel | pd.DataFrame,
    *,
    by: str | Sequence[str] = ("network", "pooled"),
    response: str = "response",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw how many responders and non-responders are taken for responders at every threshold (ROC curves).

    Parameters
    ----------
    source
        An outcome model, with what it predicted of patients that were left out; or any table with a row for each.
    by
        Columns with scores, each of which becomes a curve with its area.
    response
        Column with 1 for those that responded, and 0 for the others.
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
        If a column does not exist.
    ValueError
        If all responses are the same.

    Examples
    --------
    >>> patients = pd.DataFrame({"response": [0, 0, 1, 1], "score": [0.1, 0.4, 0.3, 0.9]})
    >>> figure = roc(patients, by="score", return_fig=True)
    >>> figure.axes[0].lines[1].get_label()
    'score, AUC 0.75'
    """
    scores = [by] if isinstance(by, str) else list(by)
    table = _columns(source, [*scores, response])
    if table[response].nunique() != 2:
        raise ValueError(
            f"response={response!r} has the values {table[response].unique().tolist()}: 0 and 1 are needed"
        )
    figure, panel = single(ax, 4, 4)
    panel.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--", label="_chance")
    for name, colour in zip(scores, _cycled(len(scores)), strict=True):
        false, true, _ = roc_curve(table[response], table[name])
        area = roc_auc_score(table[response], table[name])
        panel.plot(false, true, color=colour, linewidth=1.8, label=f"{name}, AUC {area:.2f}")
    panel.set(
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
        xlabel="false positive rate",
        ylabel="true positive rate",
    )
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="lower right")
    return finish(figure, save, return_fig, ax=ax)


def _columns(source: OutcomeModel | pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    table = source if isinstance(source, pd.DataFrame) else source.predictions
    if missing := [column for column in columns if column not in table]:
        raise KeyError(f"{missing} are no columns of the table of patients: {list(table.columns)}")
    return table


def _cycled(n: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(n)]


def _censored(time: NDArray[np.float64], event: NDArray[np.bool_]) -> CensoredData:
    return CensoredData.right_censored(time, ~event)


def _draw_survival(ax: Axes, name: str, time: NDArray[np.float64], event: NDArray[np.bool_], colour: str) -> None:
    """Steps with a band of 95 % confidence, and ticks where patients were last seen."""
    survival = ecdf(_censored(time, event)).sf
    times = np.concatenate([[0.0], survival.quantiles])
    ax.step(
        times, np.concatenate([[1.0], survival.probabilities]), where="post", color=colour, linewidth=1.8, label=name
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where nobody is left there is no interval
        band = survival.confidence_interval(method="log-log")
    low, high = (np.concatenate([[1.0], _held(side.probabilities)]) for side in (band.low, band.high))
    ax.fill_between(times, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    last_seen = time[~event]
    ax.plot(last_seen, survival.evaluate(last_seen), "|", color=colour, markersize=6, label="_censored")


def _held(limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Limits without gaps: where none is defined (nobody left) the last one goes on."""
    return pd.Series(limits).ffill().fillna(1.0).to_numpy()


def _draw_at_risk(ax: Axes, table: pd.DataFrame, by: str, time: str, groups: list[str], end: float) -> None:
    """How many of each group are still followed at the ticks of the time axis."""
    ticks = [tick for tick in MaxNLocator(6, integer=end > 6).tick_values(0, end) if 0 <= tick <= end]
    names = table[by].astype(str)
    for row, (name, colour) in enumerate(zip(groups, _cycled(len(groups)), strict=True)):
        until = table.loc[names == name, time].to_numpy()
        for tick in ticks:
            ax.text(tick, row, str(np.sum(until >= tick)), ha="center", va="center", fontsize=8, color=colour)
    ax.set(ylim=(len(groups) - 0.5, -0.5), xticks=ticks, yticks=range(len(groups)), yticklabels=groups)
    ax.set_title("number at risk", fontsize=8, loc="left")
    ax.tick_params(length=0, labelsize=8)
    ax.tick_params(axis="y", pad=14)
    ax.spines[["top", "right", "left"]].set_visible(False)
