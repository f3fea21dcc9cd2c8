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
from sphistex.pl._canvas import Window, add_scale_bar, draw_raster, finish, panels
from sphistex.pl._sources import Lattice, check_genes, find_result, find_section, find_table, read_picture, values_of

_MARGIN = 0.02
# How strongly the image shows under the spots.
_FAINT = 0.35


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
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw the image, the spots and the superpixels of each gene side by side.

    All panels show the same part of the section at the same scale, and the panels of a gene share one colour scale:
    counts per superpixel, which for a spot are its counts divided by the number of superpixels that fit into it.

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
        If ``crop_um``, ``vmin`` or ``vmax`` makes no sense.

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
    section = find_section(sdata, made)
    if not section.has_spots:
        raise ValueError(f"key={key!r}: there are no spots beside which the prediction could be drawn, only an image")
    check_genes(section.table, section.table_key, names)
    lattice = Lattice.of(table, made)
    window = lattice.window.padded(_MARGIN) if crop_um is None else _crop(crop_um)
    picture = read_picture(sdata, section.image_key, window, section.mpp)

    figure, axes = panels(len(names), 3 if true is None else 4, window)
    for row, gene in zip(axes, names, strict=True):
        spots = values_of(section.table, gene) * (lattice.pitch_px**2 / (np.pi * section.radius_px**2))
        resolved = values_of(table, gene, layer)
        norm = colour_scale(spots, resolved, vmin, vmax)
        style = {"cmap": cmap, "norm": norm}
        draw_raster(row[0], *picture)
        draw_raster(row[1], *picture, alpha=_FAINT)
        _draw_spots(row[1], section, spots, cmap, norm)
        draw_raster(row[2], lattice.raster(table.obsm["spatial"], resolved), lattice.window, **style)
        if true is not None:
            exact = lattice.raster(true.obsm["spatial"], values_of(true, gene, truth_layer))
            draw_raster(row[3], exact, lattice.window, **style)
        _label_row(figure, row, gene, made["pitch_um"], ScalarMappable(norm, cmap))
    _label_columns(axes[0], section, made["pitch_um"])
    return finish(figure, save, return_fig)


def _crop(crop_um: tuple[float, float, float, float]) -> Window:
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
        grid, weights = section.grid, section.bags.weights
        covered = np.asarray(weights.sum(0)).ravel()
        shared = np.where(covered > 0, (values @ weights) / np.where(covered > 0, covered, 1), np.nan)
        window = Window(0, 0, grid.shape[1] * grid.pitch_um, grid.shape[0] * grid.pitch_um)
        draw_raster(ax, shared.reshape(grid.shape), window, cmap=cmap, norm=norm)
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


def _label_row(figure: Figure, row: NDArray, gene: str, pitch_um: float, colours: ScalarMappable) -> None:
    row[0].set_ylabel(gene, fontsize=11, fontstyle="italic")
    add_scale_bar(row[0])
    bar = figure.colorbar(colours, ax=row.tolist(), extend="max", shrink=0.8, aspect=25, pad=0.015)
    bar.set_label(f"counts per {pitch_um:g} × {pitch_um:g} µm", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _label_columns(row: NDArray, section: Section, pitch_um: float) -> None:
    radius_um = float(np.median(section.radius_px)) * section.mpp
    is_disk = section.outlines_px is None
    measured = f"Spots, {2 * radius_um:.0f} µm" if is_disk else f"Bins, {np.sqrt(np.pi) * radius_um:.0f} µm"
    titles = ("H&E", measured, f"sphistex, {pitch_um:g} µm", f"Truth, {pitch_um:g} µm")
    for ax, title in zip(row, titles, strict=False):
        ax.set_title(title, fontsize=10)
