"""Why a section is said to have a high risk: what each position adds, over the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from anndata import AnnData
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from spatialdata import SpatialData

from sphistex.pl._canvas import Window, add_scale_bar, draw_raster, finish, panels
from sphistex.pl._sources import find_table, read_picture

if TYPE_CHECKING:
    from sphistex.tl import OutcomeModel

_MARGIN = 0.04
_FAINT = 0.35
# Of the distance between positions.
_DISK = 0.92
_WHAT = {"survival": "log hazard", "response": "log odds of a response"}


def attribution(
    sdata: SpatialData,
    model: OutcomeModel,
    *,
    image_key: str | None = None,
    pitch_um: float = 100.0,
    cmap: str | Colormap = "RdBu_r",
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw what each position of a section adds to the risk, beside the image.

    Parameters
    ----------
    sdata
        A section with the table that the model was fitted to.
    model
        What :func:`sphistex.tl.fit_outcome` returned.
    image_key
        Image to draw; by default the thumbnail of the table, or where it has none the only image.
    pitch_um
        Distance between positions in µm, where the table does not record it.
    cmap
        Colour map; its middle is 0.
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
        If the table or the image does not exist.
    ValueError
        If the table has no places, or it is open which image to draw.

    Examples
    --------
    >>> import scanpy as sc
    >>> import sphistex as sx
    >>> sections, clinical = sx.datasets.simulate_cohort(n_patients=8, size_um=400, n_genes=20)
    >>> for section in sections.values():
    ...     counts = section.tables["counts"]
    ...     sc.pp.normalize_total(counts, target_sum=1e4)
    ...     sc.pp.log1p(counts)
    >>> clinical["response"] = [0, 1] * 4
    >>> model = sx.tl.fit_outcome(
    ...     sections, clinical, response="response", table_key="counts", folds=2, n_models=1, n_permutations=0
    ... )
    >>> figure = sx.pl.attribution(sections["S001"], model, return_fig=True)
    >>> [ax.get_title() for ax in figure.axes[:2]]
    ['H&E', 'Attribution']
    """
    table_key = str(model.columns["table_key"])
    table = find_table(sdata, "table_key", table_key)
    if "spatial" not in table.obsm:
        raise ValueError(f'table {table_key!r} has no obsm["spatial"]: the places of its positions in pixels')
    xy_px = np.asarray(table.obsm["spatial"], dtype=float)
    pitch_px = float(np.median(cKDTree(xy_px).query(xy_px, k=2)[0][:, 1]))
    pitch_um = float(table.uns.get(table_key, {}).get("lattice", {}).get("pitch_um", pitch_um))
    mpp = pitch_um / pitch_px
    shares = model.attribution(sdata).to_numpy()

    low, high = (xy_px.min(axis=0) - pitch_px / 2) * mpp, (xy_px.max(axis=0) + pitch_px / 2) * mpp
    window = Window(*low.tolist(), *high.tolist()).padded(_MARGIN)
    picture, covered = _picture(sdata, table, image_key, window, mpp)
    norm = TwoSlopeNorm(0.0, *_limits(shares))
    figure, axes = panels(1, 2, window)
    for ax, alpha, title in zip(axes[0], (1.0, _FAINT), ("H&E", "Attribution"), strict=True):
        draw_raster(ax, picture, covered, alpha=alpha)
        ax.set_title(title, fontsize=10)
    disks = EllipseCollection(
        np.full(len(shares), _DISK * pitch_um),
        np.full(len(shares), _DISK * pitch_um),
        np.zeros(len(shares)),
        units="xy",
        offsets=xy_px * mpp,
        offset_transform=axes[0, 1].transData,
        array=shares,
        cmap=mpl.colormaps[cmap] if isinstance(cmap, str) else cmap,
        norm=norm,
        linewidths=0,
    )
    axes[0, 1].add_collection(disks, autolim=False)
    add_scale_bar(axes[0, 0])
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=axes[0].tolist(), shrink=0.8, aspect=25, pad=0.015)
    bar.set_label(f"added to the {_WHAT[model.kind]}", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return finish(figure, save, return_fig)


def _limits(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of a scale that is the same on both sides of 0."""
    most = float(np.abs(shares).max()) or 1.0
    return -most, most


def _picture(
    sdata: SpatialData, table: AnnData, image_key: str | None, window: Window, mpp: float
) -> tuple[NDArray[Any], Window]:
    """A small picture, and what it covers."""
    recorded = table.uns.get("spatial", {})
    if image_key is None and recorded:
        library = next(iter(recorded.values()))
        picture = np.asarray(library["images"]["hires"])
        height, width = np.array(picture.shape[:2]) * mpp / float(library["scalefactors"]["tissue_hires_scalef"])
        return picture, Window(0.0, 0.0, float(width), float(height))
    if image_key is None:
        if len(sdata.images) != 1:
            raise ValueError(f"image_key=None: there is no thumbnail; name one of the images {list(sdata.images)}")
        (image_key,) = sdata.images
    return read_picture(sdata, image_key, window, mpp)
