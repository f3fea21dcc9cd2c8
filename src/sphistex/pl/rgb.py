"""Several genes in one picture, each in a colour of its own, as a fluorescence microscope shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex._section import Section
from sphistex.pl._canvas import add_scale_bar, draw_raster, figure_of, finish, frame, panels
from sphistex.pl._places import Places
from sphistex.pl._sources import Lattice, check_genes, find_result, find_section, read_picture, values_of
from sphistex.pl.expression import (
    FAINT,
    IMAGE,
    SPOTS,
    SUPERPIXELS,
    bin_raster,
    colour_scale,
    column_titles,
    crop_window,
    per_superpixel,
)

_MARGIN = 0.02
# Three lights whose sum is white, and those that are told apart from them and from each other. Pure blue is too dark.
_COLOURS = ("red", "lime", "#4060ff", "yellow", "magenta", "cyan")


def rgb(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    key: str = "superres",
    layer: str | None = None,
    colours: Sequence[str] | None = None,
    crop_um: tuple[float, float, float, float] | None = None,
    vmin: float | str = 0.0,
    vmax: float | str = "p99.5",
    ax: Axes | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw several genes in one map, each in a colour of its own, as measured by the spots and as resolved.

    Where genes lie together, their colours add up as lights do: red and green to yellow, all three to white. Each gene
    goes from black to its full colour over a scale of its own, the same for spots and superpixels, so that colours say
    where genes are, and not which of them has more counts.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`.
    genes
        One to six genes; three are the most that mixed colours tell apart.
    key
        Name of the result.
    layer
        Layer of the result with counts per superpixel; by default ``X``.
    colours
        A colour for each gene; by default red, green, blue, yellow, magenta, cyan.
    crop_um
        Part to draw: left, top, right and bottom in µm from the image's top-left corner; by default all tissue.
    vmin, vmax
        Ends of each gene's scale: counts per superpixel, or a percentile such as ``"p99"`` (the higher one of spots
        and superpixels).
    ax
        Axes to draw the superpixels into, without image and spots, as a part of a figure of your own.
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
        If there is no such result, layer or gene.
    ValueError
        If there are more genes than colours, or ``colours``, ``crop_um``, ``vmin`` or ``vmax`` makes no sense.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=600, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> figure = sx.pl.rgb(sdata, model.genes[:3], return_fig=True)
    >>> [text.get_text() for text in figure.legends[0].get_texts()] == model.genes[:3]
    True
    """
    table, made = find_result(sdata, key)
    names = check_genes(table, key, genes)
    lights = _lights(names, colours)
    section = find_section(sdata, made)
    if section.has_spots:
        check_genes(section.table, section.table_key, names)
    lattice = Lattice.of(sdata, table, made)
    window = lattice.window.padded(_MARGIN) if crop_um is None else crop_window(crop_um)
    resolved = [values_of(table, gene, layer) for gene in names]
    spots = [per_superpixel(section, gene, lattice) for gene in names] if section.has_spots else resolved
    norms = [colour_scale(*values, vmin, vmax) for values in zip(spots, resolved, strict=True)]

    titles = column_titles(section, made["pitch_um"])
    if ax is None:
        figure, (axes,) = panels(1, len(titles), window)
        picture = read_picture(sdata, section.image_key, window, section.mpp)
        add_scale_bar(axes[0])
    else:
        figure, axes, titles = figure_of(ax), np.array([ax]), {SUPERPIXELS: titles[SUPERPIXELS]}
        frame(ax, window)
        add_scale_bar(ax)
    for panel, (column, title) in zip(axes, titles.items(), strict=True):
        panel.set_title(title, fontsize=10)
        if column == IMAGE:
            draw_raster(panel, *picture)
        elif column == SPOTS:
            draw_raster(panel, *picture, alpha=FAINT)
            _draw_spots(panel, section, [norm(values) for norm, values in zip(norms, spots, strict=True)], lights)
        else:
            maps = [lattice.raster(table.obsm["spatial"], values) for values in resolved]
            draw_raster(
                panel, _mixed([norm(one) for norm, one in zip(norms, maps, strict=True)], lights), lattice.window
            )
    handles = [Patch(color=light, label=gene) for light, gene in zip(lights, names, strict=True)]
    style = {"frameon": False, "prop": {"style": "italic", "size": 8}}
    if ax is None:
        figure.legend(handles=handles, loc="outside right center", **style)
    else:
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), **style)
    return finish(figure, save, return_fig, ax=ax)


def _lights(genes: list[str], colours: Sequence[str] | None) -> NDArray[np.float64]:
    """Red, green and blue (n_genes, 3), from 0 to 1, of each gene."""
    chosen = list(_COLOURS if colours is None else [colours] if isinstance(colours, str) else colours)
    if len(chosen) < len(genes):
        raise ValueError(f"{len(genes)} genes, but {len(chosen)} colours: name fewer genes, or more colours=")
    try:
        return np.array([to_rgb(colour) for colour in chosen[: len(genes)]])
    except ValueError as error:
        raise ValueError(f"colours={colours!r}: {error}; Matplotlib's names and codes such as '#ff8800' are") from error


def _mixed(values: Sequence[NDArray], lights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Red, green, blue and opacity (..., 4) of genes that shine with these values (...) from 0 to 1.

    What is NaN, because there is no tissue, is transparent.
    """
    there = np.isfinite(np.ma.filled(values[0], np.nan))
    mixed = np.zeros((*there.shape, 4), dtype=np.float32)
    for value, light in zip(values, lights, strict=True):
        mixed[..., :3] += np.nan_to_num(np.ma.filled(value, np.nan)).clip(0, 1)[..., None] * light
    mixed[..., 3] = there
    return mixed.clip(0, 1)


def _draw_spots(ax: Axes, section: Section, values: Sequence[NDArray], lights: NDArray[np.float64]) -> None:
    """Spots as disks of their true size; bins on the superpixels that they cover."""
    if section.outlines_px is not None:
        rasters, windows = zip(*(bin_raster(section, np.asarray(value)) for value in values), strict=True)
        draw_raster(ax, _mixed(list(rasters), lights), windows[0])
        return
    diameter_um = 2 * float(np.median(section.radius_px)) * section.mpp
    places = Places(section.image_key, section.mpp, section.xy_px * section.mpp, diameter_um, section.pitch_um)
    places.draw(ax, places.placed, facecolors=_mixed(values, lights))
