"""Genes as they were measured and as they were resolved, beside the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex._section import Section
from sphistex.pl._canvas import (
    Window,
    add_colour_bar,
    add_scale_bar,
    check_single,
    draw_raster,
    figure_of,
    finish,
    frame,
    panels,
)
from sphistex.pl._sources import Lattice, check_genes, find_result, find_section, find_table, read_picture, values_of

_MARGIN = 0.02
# How strongly the image shows under the spots.
FAINT = 0.35
# The columns of a picture.
IMAGE, SPOTS, SUPERPIXELS, TRUTH = "image", "spots", "superpixels", "truth"


def expression(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    key: str = "superres",
    layer: str | None = None,
    truth: str | None = None,
    truth_layer: str | None = None,
    crop_um: tuple[float, float, float, float] | None = None,
    cmap: str | Colormap = "viridis",
    vmin: float | str = 0.0,
    vmax: float | str = "p99.5",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the image, the spots and the superpixels of each gene side by side.

    All panels show the same part of the section at the same scale, and the panels of a gene share one colour scale:
    counts per superpixel, which for a spot are its counts divided by the number of superpixels that fit into it. A
    result that was made from an image alone has no panel of spots.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`.
    genes
        One gene or several; each gets a row.
    key
        Name of the result.
    layer
        Layer of the result with counts per superpixel; by default ``X``.
    truth, truth_layer
        Name (and layer) of a table to draw in a fourth column. ``obsm["spatial"]`` must hold its places in pixels of
        the image; what lies in one superpixel is summed, so that it may be finer than the result.
    crop_um
        Part to draw: left, top, right and bottom in µm from the image's top-left corner; by default all tissue.
    cmap
        Colour map.
    vmin, vmax
        Ends of the colour scale: counts per superpixel, or a percentile such as ``"p99"`` (the higher one of spots
        and superpixels).
    ax
        Axes to draw the superpixels of one gene into, without the other panels, as a part of a figure of your own.
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
        If a table, a layer or a gene does not exist.
    ValueError
        If ``crop_um``, ``vmin`` or ``vmax`` makes no sense, or several genes are to be drawn into one ``ax``.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> figure = sx.pl.expression(sdata, model.genes[:2], truth="truth", return_fig=True)
    >>> len(figure.axes)  # two rows of four panels, each with a colour bar
    10
    """
    table, made = find_result(sdata, key)
    names = check_genes(table, key, genes)
    true = None if truth is None else find_table(sdata, "truth", truth)
    if true is not None:
        check_genes(true, str(truth), names)
    check_single(ax, "genes", names)
    section = find_section(sdata, made)
    if section.has_spots:
        check_genes(section.table, section.table_key, names)
    lattice = Lattice.of(sdata, table, made)
    window = lattice.window.padded(_MARGIN) if crop_um is None else crop_window(crop_um)

    titles = column_titles(section, made["pitch_um"]) | (
        {} if true is None else {TRUTH: f"Truth, {made['pitch_um']:g} µm"}
    )
    if ax is None:
        figure, axes = panels(len(names), len(titles), window)
        picture = read_picture(sdata, section.image_key, window, section.mpp)
    else:
        figure, axes, titles = figure_of(ax), np.array([[ax]]), {SUPERPIXELS: titles[SUPERPIXELS]}
        frame(ax, window)
    for row, gene in zip(axes, names, strict=True):
        resolved = values_of(table, gene, layer)
        spots = per_superpixel(section, gene, lattice) if section.has_spots else resolved
        norm = colour_scale(spots, resolved, vmin, vmax)
        for panel, column in zip(row, titles, strict=True):
            if column == IMAGE:
                draw_raster(panel, *picture)
            elif column == SPOTS:
                draw_raster(panel, *picture, alpha=FAINT)
                _draw_spots(panel, section, spots, cmap, norm)
            else:
                places, values = table.obsm["spatial"], resolved
                if column == TRUTH and true is not None:
                    places, values = true.obsm["spatial"], values_of(true, gene, truth_layer)
                draw_raster(panel, lattice.raster(places, values), lattice.window, cmap=cmap, norm=norm)
        _label_row(figure, row, gene, made["pitch_um"], ScalarMappable(norm, cmap))
    for panel, title in zip(axes[0], titles.values(), strict=True):
        panel.set_title(title, fontsize=10)
    return finish(figure, save, return_fig, ax=ax)


def per_superpixel(section: Section, gene: str, lattice: Lattice) -> NDArray[np.float64]:
    """Counts of spots (n_spots,) per area of a superpixel."""
    return values_of(section.table, gene) * (lattice.pitch_px**2 / (np.pi * section.radius_px**2))


def crop_window(crop_um: tuple[float, float, float, float]) -> Window:
    """The part that is to be drawn, where it makes sense."""
    sides = np.asarray(crop_um, dtype=float)
    if sides.shape != (4,) or not (sides[2] > sides[0] and sides[3] > sides[1]):
        raise ValueError(
            f"crop_um={crop_um!r}: give left, top, right and bottom in µm, with left < right, top < bottom"
        )
    return Window(*sides.tolist())


def colour_scale(spots: NDArray, resolved: NDArray, vmin: float | str, vmax: float | str) -> Normalize:
    """One scale for spots and superpixels, with a positive width."""
    low, high = _limit("vmin", vmin, spots, resolved), _limit("vmax", vmax, spots, resolved)
    if isinstance(vmax, str) and not high > low:
        high = max(float(resolved.max()), float(spots.max()), low + 1e-3)  # hardly a count anywhere
    if not high > low:
        raise ValueError(f"vmin={vmin!r}, vmax={vmax!r}: the colour scale would go from {low:g} to {high:g}")
    return Normalize(low, high)


def _limit(argument: str, value: float | str, spots: NDArray, resolved: NDArray) -> float:
    if not isinstance(value, str):
        return float(value)
    try:
        share = float(value.removeprefix("p")) if value.startswith("p") else np.nan
        return float(max(np.percentile(spots, share), np.percentile(resolved, share)))
    except ValueError as error:
        raise ValueError(f'{argument}={value!r}: give a number, or a percentile such as "p99"') from error


def _draw_spots(ax: Axes, section: Section, values: NDArray, cmap: str | Colormap, norm: Normalize) -> None:
    """Spots as disks of their true size; bins on the superpixels that they cover."""
    if section.outlines_px is not None:
        draw_raster(ax, *bin_raster(section, values), cmap=cmap, norm=norm)
        return
    diameter_um = 2 * section.radius_px * section.mpp
    disks = EllipseCollection(
        diameter_um,
        diameter_um,
        np.zeros(len(values)),
        units="xy",
        offsets=section.xy_px * section.mpp,
        offset_transform=ax.transData,
        array=values,
        cmap=mpl.colormaps[cmap] if isinstance(cmap, str) else cmap,
        norm=norm,
        linewidths=0,
    )
    ax.add_collection(disks, autolim=False)


def bin_raster(section: Section, values: NDArray) -> tuple[NDArray[np.float64], Window]:
    """Values of bins (n_bins,) on the superpixels that they cover, (rows, columns), and the window of these."""
    grid, weights = section.grid, section.bags.weights
    covered = np.asarray(weights.sum(0)).ravel()
    shared = np.where(covered > 0, (values @ weights) / np.where(covered > 0, covered, 1), np.nan)
    return shared.reshape(grid.shape), Window(0, 0, grid.shape[1] * grid.pitch_um, grid.shape[0] * grid.pitch_um)


def _label_row(figure: Figure, row: NDArray, gene: str, pitch_um: float, colours: ScalarMappable) -> None:
    row[0].set_ylabel(gene, fontsize=11, fontstyle="italic")
    add_scale_bar(row[0])
    add_colour_bar(figure, row.tolist(), colours, f"counts per {pitch_um:g} × {pitch_um:g} µm", "max")


def column_titles(section: Section, pitch_um: float) -> dict[str, str]:
    """The columns of a picture of a section, and what stands above each; that of the spots only if there are any."""
    radius_um = float(np.median(section.radius_px)) * section.mpp if section.has_spots else 0.0
    is_disk = section.outlines_px is None
    measured = f"Spots, {2 * radius_um:.0f} µm" if is_disk else f"Bins, {np.sqrt(np.pi) * radius_um:.0f} µm"
    titles = {IMAGE: "H&E", SPOTS: measured, SUPERPIXELS: f"sphistex, {pitch_um:g} µm"}
    return {column: title for column, title in titles.items() if section.has_spots or column != SPOTS}
