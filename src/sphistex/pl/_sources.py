"""What pictures are made from: a result as a raster, the image at the size it is drawn, genes by name."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData, get_pyramid_levels
from xarray import DataArray

from sphistex._checks import check_open
from sphistex._section import Section, image_alone, resolve_section
from sphistex._thumbnail import shrink
from sphistex.pl._canvas import PANEL_PX, Window
from sphistex.tl._cut import moved_px
from sphistex.tl.genes import open_genes


@dataclass(frozen=True)
class Lattice:
    """Where the superpixels of a result lie: its first row and column, and how many there are.

    Parameters
    ----------
    origin_px
        Top-left corner (x, y) in pixels of the full-resolution image that the result was made from.
    pitch_px
        Side of a superpixel.
    shape
        Rows and columns.
    mpp
        Microns per pixel.
    moved_px
        Added to places in that image for those in the image as it is now, which may have been cut.
    """

    origin_px: NDArray[np.float64]
    pitch_px: float
    shape: tuple[int, int]
    mpp: float
    moved_px: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    @classmethod
    def of(cls, sdata: SpatialData, table: AnnData, made: dict[str, Any]) -> Lattice:
        """The lattice of a result, whether or not superpixels were taken out of it."""
        mpp = float(made["mpp"])
        pitch_px = float(made["pitch_um"]) / mpp
        row_column = table.obs[["array_row", "array_col"]].to_numpy()
        first = row_column.min(axis=0)
        corner = np.asarray(table.obsm["spatial"])[:1] - ((row_column[:1] - first)[:, ::-1] + 0.5) * pitch_px
        rows, columns = row_column.max(axis=0) - first + 1
        return cls(corner[0], pitch_px, (int(rows), int(columns)), mpp, moved_px(sdata, table, made))

    @property
    def window(self) -> Window:
        """The rectangle of the image that it covers."""
        left, top = (self.origin_px + self.moved_px) * self.mpp
        pitch_um = self.pitch_px * self.mpp
        return Window(left, top, left + self.shape[1] * pitch_um, top + self.shape[0] * pitch_um)

    def row_column(self, xy_px: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the superpixels in which places (n, 2) lie."""
        column, row = np.floor((np.asarray(xy_px) - self.origin_px) / self.pitch_px).astype(np.intp).T
        return row, column

    def raster(self, xy_px: NDArray, values: NDArray) -> NDArray[np.float32]:
        """Sum of the values (n,) at the places (n, 2) in each superpixel, (rows, columns); NaN where there are none."""
        row, column = self.row_column(xy_px)
        inside = (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        place = np.ravel_multi_index((row[inside], column[inside]), self.shape)
        size = self.shape[0] * self.shape[1]
        sums = np.bincount(place, weights=values[inside], minlength=size).astype(np.float32)
        sums[np.bincount(place, minlength=size) == 0] = np.nan
        return sums.reshape(self.shape)


def find_result(sdata: SpatialData, key: str) -> tuple[AnnData, dict[str, Any]]:
    """Table of a result, and how it was made."""
    results = [name for name, other in sdata.tables.items() if "section" in other.uns.get(name, {})]
    if key not in results:
        held = "a table, but" if key in sdata.tables else f"not in sdata.tables {list(sdata.tables)},"
        remedy = f"results are {results}" if results else "there is none; sphistex run STORE.zarr makes one"
        raise KeyError(f"key={key!r} is {held} not a result of sphistex.tl.super_resolve: {remedy}")
    table = sdata.tables[key]
    check_open(table, key)
    return table, table.uns[key]


def open_result(sdata: SpatialData, key: str) -> tuple[AnnData, dict[str, Any]]:
    """As :func:`find_result`; a lazy result that was read from disk gets its counts back."""
    if key in sdata.tables and sdata.tables[key].X is None and "latent_key" in sdata.tables[key].uns.get(key, {}):
        open_genes(sdata, key=key)
    return find_result(sdata, key)


def find_table(sdata: SpatialData, argument: str, name: str) -> AnnData:
    """A table by name."""
    if name not in sdata.tables:
        raise KeyError(f"{argument}={name!r} is not in sdata.tables: {list(sdata.tables)}")
    return sdata.tables[name]


def find_section(sdata: SpatialData, made: dict[str, Any]) -> Section:
    """The image, and where there are any the spots and counts, that a result was made from."""
    if not made.get("spots", True):
        return image_alone(sdata, [], image_key=made["section"]["image_key"], mpp=float(made["mpp"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what there is to say was said when the result was made
        return resolve_section(sdata, mpp=float(made["mpp"]), **made["section"])


def check_genes(table: AnnData, name: str, genes: str | Sequence[str]) -> list[str]:
    """Genes as a list, all of them in the table."""
    wanted = [genes] if isinstance(genes, str) else list(genes)
    if not wanted:
        raise ValueError(f"genes={genes!r}: name at least one gene of table {name!r}, such as {table.var_names[0]!r}")
    missing = [gene for gene in wanted if gene not in table.var_names]
    if missing:
        near = {match for gene in missing for match in difflib.get_close_matches(str(gene), table.var_names, n=3)}
        some = sorted(near) or list(table.var_names[:5])
        raise KeyError(f"genes {missing} are not among the {table.n_vars} genes of table {name!r}, such as {some}")
    return wanted


def values_of(table: AnnData, gene: str, layer: str | None = None) -> NDArray[np.float64]:
    """One gene of a table, (n_obs,)."""
    if layer is not None and layer not in table.layers:
        raise KeyError(f"layer={layer!r} is not in the layers of the table: {list(table.layers)}")
    counts = table.X if layer is None else table.layers[layer]
    column = counts[:, [table.var_names.get_loc(gene)]]
    column = column.compute() if hasattr(column, "compute") else column  # lazy, or of a large table on disk
    return np.asarray(column.toarray() if sparse.issparse(column) else column, dtype=float).ravel()


def read_picture(sdata: SpatialData, image_key: str, window: Window, mpp: float) -> tuple[NDArray[np.uint8], Window]:
    """The image (y, x, 3) inside a window, no finer than a panel needs, and the window that it really covers.

    The coarsest level of a pyramid that is fine enough is read; what is finer is averaged down while it is read.
    """
    wanted_um = wanted_mpp(window)
    image, level_mpp = level_for(sdata, image_key, wanted_um, mpp)
    spans = ((window.top, window.bottom, image.sizes["y"]), (window.left, window.right, image.sizes["x"]))
    (top, bottom), (left, right) = (
        (max(0, int(start / level_mpp)), min(size, int(np.ceil(stop / level_mpp)))) for start, stop, size in spans
    )
    part = image.isel(y=slice(top, bottom), x=slice(left, right))
    if not part.size:
        raise ValueError(
            f"nothing of image {image_key!r} lies between x {window.left:.0f} and {window.right:.0f} µm, y "
            f"{window.top:.0f} and {window.bottom:.0f} µm: it is {image.sizes['x'] * level_mpp:.0f} × "
            f"{image.sizes['y'] * level_mpp:.0f} µm"
        )
    factor = max(1, int(wanted_um / level_mpp))
    small = shrink(part, factor)
    size_um = np.array(small.shape[:2]) * factor * level_mpp
    corner = left * level_mpp, top * level_mpp
    return small, Window(*corner, corner[0] + size_um[1], corner[1] + size_um[0])


def wanted_mpp(window: Window) -> float:
    """Microns per pixel at which a window fills a panel."""
    return max(window.width, window.height) / PANEL_PX


def level_for(sdata: SpatialData, image_key: str, wanted_um: float, mpp: float) -> tuple[DataArray, float]:
    """The coarsest level of an image with at most ``wanted_um`` per pixel, or else the finest; and its own scale."""
    if image_key not in sdata.images:
        raise KeyError(f"image_key={image_key!r} is not in sdata.images: {list(sdata.images)}")
    levels = list(_levels(sdata.images[image_key], mpp))
    return next(((one, size) for one, size in reversed(levels) if size <= wanted_um), levels[0])


def _levels(image: Any, mpp: float) -> Iterator[tuple[DataArray, float]]:
    """Levels of an image from fine to coarse, with their microns per pixel."""
    levels = [image] if isinstance(image, DataArray) else list(get_pyramid_levels(image))
    for level in levels:
        yield level, mpp * levels[0].sizes["x"] / level.sizes["x"]
