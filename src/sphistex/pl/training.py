"""How a model learned: its losses, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from spatialdata import SpatialData

from sphistex.pl._canvas import finish, single
from sphistex.pl._sources import find_result

if TYPE_CHECKING:
    from sphistex.nn import SuperResolver

_CURVES = ("train_loss", "validation_loss", "best_epoch")


def training(
    source: SpatialData | AnnData | SuperResolver,
    *,
    key: str = "superres",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the loss on the spots that were trained on and on those held out, with the epochs whose weights were kept.

    Both falling together is a healthy fit. A held-out loss that rises while the other falls is over-fitting, which is
    why each model of the ensemble keeps the weights of its own best epoch.

    Parameters
    ----------
    source
        SpatialData with a result, its table, or a fitted model.
    key
        Name of the result.
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
        If there is no such result, or it holds no loss curves.

    Examples
    --------
    >>> from anndata import AnnData
    >>> curves = {"train_loss": [3.0, 2.0, 1.5], "validation_loss": [3.1, 2.2, 2.4], "best_epoch": [1, 1]}
    >>> figure = training(AnnData(uns={"superres": {"training": curves}}), return_fig=True)
    >>> figure.axes[0].get_xlabel()
    'epoch'
    """
    curves = _curves(source, key)
    train, validation = (np.atleast_1d(np.asarray(curves[name], dtype=float)) for name in _CURVES[:2])
    epochs = np.arange(1, len(train) + 1)
    figure, panel = single(ax, 5, 3.2)
    panel.plot(epochs, train, color="#4477aa", linewidth=1.8, label="spots trained on")
    watched, curve = ("spots held out", validation) if np.isfinite(validation).any() else ("", train)
    if watched:
        panel.plot(epochs, validation, color="#ee6677", linewidth=1.8, label=watched)
    best, models = np.unique(np.atleast_1d(np.asarray(curves["best_epoch"], dtype=int)), return_counts=True)
    panel.scatter(
        best + 1,
        curve[best],
        s=20 + 15 * models,
        color="#ee6677" if watched else "#4477aa",
        zorder=3,
        edgecolor="white",
        label="kept by a model" if models.sum() == 1 else "kept by models of the ensemble",
    )
    panel.set(xlabel="epoch", ylabel="mean loss per spot")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    return finish(figure, save, return_fig, ax=ax)


def _curves(source: SpatialData | AnnData | SuperResolver, key: str) -> Mapping[str, Any]:
    if isinstance(source, SpatialData):
        curves = find_result(source, key)[1].get("training", {})
    elif isinstance(source, AnnData):
        if key not in source.uns:
            raise KeyError(f"key={key!r} is not in the table's uns: {list(source.uns)}")
        curves = source.uns[key].get("training", {})
    else:
        curves = source.info
    if missing := [name for name in _CURVES if name not in curves]:
        raise KeyError(f"{key!r} has no loss curves: {missing} are missing")
    return curves
