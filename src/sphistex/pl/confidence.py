"""How certain a result is: what is expected, between which ends it lies, and where a gene is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.pl._canvas import Window, add_colour_bar, add_scale_bar, draw_raster, finish, panels
from sphistex.pl._sources import Lattice, check_genes, find_table, values_of
from sphistex.tl import confidence as intervals
from sphistex.tl._trust import made_how

_MARGIN = 0.02


def confidence(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    key: str = "superres",
    scale_um: float = 32.0,
    level: float = 0.9,
    above: float | None = None,
    fdr: float = 0.1,
    cmap: str = "viridis",
    save: str | Path | None = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Figure | None:
    """Draw what is expected of each gene, the ends of its intervals, and where it is called.

    The first three panels of a gene share one colour scale, counts per square. The last shows the probability that the
    expression is above the threshold, and outlines the squares that are called.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`.
    genes
        One gene or several; each gets a row.
    key, scale_um, level, above, fdr, kwargs
        As in :func:`sphistex.tl.confidence`.
    cmap
        Colour map of the counts.
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
        As :func:`sphistex.tl.confidence`.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=1200, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=3)
    >>> figure = sx.pl.confidence(sdata, model.genes[:2], return_fig=True)
    >>> len(figure.axes)  # two rows of four panels, each with two colour bars
    12
    """
    table = find_table(sdata, "key", key)
    made = made_how(table, key)
    names = check_genes(table, key, genes)
    squares = intervals(sdata, names, key=key, scale_um=scale_um, level=level, above=above, fdr=fdr, **kwargs)
    superpixels = Lattice.of(sdata, table, made)
    lattice = _squares(superpixels, scale_um, squares)
    figure, axes = panels(len(names), 4, superpixels.window.padded(_MARGIN))
    for row, gene in zip(axes, names, strict=True):
        rasters = [
            lattice.raster(squares.obsm["spatial"], values_of(squares, gene, layer))
            for layer in (None, "lower", "upper", "probability", "called")
        ]
        counts = Normalize(0, max(float(np.nanpercentile(rasters[2], 99.5)), 1e-3))
        for ax, raster in zip(row, rasters[:3], strict=False):
            draw_raster(ax, raster, lattice.window, cmap=cmap, norm=counts)
        draw_raster(row[3], rasters[3], lattice.window, cmap="Greys", norm=Normalize(0, 1))
        _outline(row[3], rasters[4], lattice.window)
        _label_row(figure, row, gene, scale_um, ScalarMappable(counts, cmap))
    threshold = "its mean" if above is None else f"{above:g} per superpixel"
    tails = f"{level:.0%} interval"
    titles = (
        f"Expected, {scale_um:g} µm",
        f"Lower end, {tails}",
        f"Upper end, {tails}",
        f"Above {threshold} (called: FDR {fdr:.0%})",
    )
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    return finish(figure, save, return_fig)


def _squares(superpixels: Lattice, scale_um: float, squares: AnnData) -> Lattice:
    """The lattice of the squares."""
    pitch_px = scale_um / superpixels.mpp
    places = squares.obs[["array_row", "array_col"]]
    rows, columns = places.max() - places.min() + 1
    corner = np.asarray(squares.obsm["spatial"]).min(axis=0) - pitch_px / 2
    return replace(superpixels, origin_px=corner, pitch_px=pitch_px, shape=(int(rows), int(columns)))


def _outline(ax: Axes, called: NDArray, window: Window) -> None:
    """Draw a line around what is called."""
    inside = np.nan_to_num(called) > 0
    if inside.any() and not inside.all():
        fine = np.kron(inside, np.ones((4, 4)))  # so that the line follows the squares' sides
        ax.contour(
            fine,
            levels=[0.5],
            extent=window.extent,
            origin="upper",
            colors="tab:red",
            linewidths=0.7,
            corner_mask=False,
        )


def _label_row(figure: Figure, row: NDArray, gene: str, scale_um: float, counts: ScalarMappable) -> None:
    row[0].set_ylabel(gene, fontsize=11, fontstyle="italic")
    add_scale_bar(row[0])
    add_colour_bar(figure, row[:3].tolist(), counts, f"counts per {scale_um:g} × {scale_um:g} µm", "max")
    add_colour_bar(figure, row[3:].tolist(), ScalarMappable(Normalize(0, 1), "Greys"), "probability")
