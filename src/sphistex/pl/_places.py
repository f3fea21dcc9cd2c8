"""Where the spots of any table lie on their image: measured or predicted ones, or superpixels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from spatialdata import SpatialData

from sphistex._section import Spots, resolve_image, resolve_spots
from sphistex.pl._canvas import Window

# Vector pictures of more disks than this are too large for most viewers.
_MANY = 5000


@dataclass(frozen=True)
class Places:
    """Centres and size of spots on an image.

    Parameters
    ----------
    image_key
        The image.
    mpp
        Microns per pixel of it.
    xy_um
        Centres (n_obs, 2) in µm from the image's top-left corner, x first; NaN of spots without a place.
    diameter_um, pitch_um
        Size of the spots, and distance between neighbours.
    """

    image_key: str
    mpp: float
    xy_um: NDArray[np.float64]
    diameter_um: float
    pitch_um: float

    @classmethod
    def of(cls, sdata: SpatialData, table: AnnData, name: str, image_key: str | None = None) -> Places:
        """Places of the spots of the table ``name``.

        Raises
        ------
        KeyError, ValueError
            If it says nowhere on which image, at which scale, its spots lie.
        """
        made = table.uns.get(name, {})
        lattice = made.get("lattice", {})
        image_key = image_key or made.get("section", {}).get("image_key") or made.get("image_key")
        shapes_key = table.uns.get("spatialdata_attrs", {}).get("region")
        if isinstance(shapes_key, str) and shapes_key in sdata.shapes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what there is to say was said when the table was made
                spots = resolve_spots(
                    sdata,
                    image_key=image_key,
                    shapes_key=shapes_key,
                    mpp=made.get("mpp"),
                    spot_pitch_um=lattice.get("pitch_um"),
                )
            return cls._of_spots(spots, sdata.shapes[shapes_key].geometry, table)
        pitch_um = lattice.get("pitch_um", made.get("pitch_um"))
        if pitch_um is None or "spatial" not in table.obsm:
            raise ValueError(
                f"table {name!r} does not say where its spots lie: it annotates no shapes, and has no obsm['spatial'] "
                "with a known distance between spots"
            )
        xy_px = np.asarray(table.obsm["spatial"], dtype=float)
        pitch_px = _pitch(xy_px)
        mpp = float(made.get("mpp", pitch_um / pitch_px))
        scales = table.uns.get("spatial", {}).get(name, {}).get("scalefactors", {})
        diameter_px = float(scales.get("spot_diameter_fullres", pitch_px))
        return cls(resolve_image(sdata, image_key=image_key)[0], mpp, xy_px * mpp, diameter_px * mpp, float(pitch_um))

    @classmethod
    def _of_spots(cls, spots: Spots, geometry: Any, table: AnnData) -> Places:
        drawn = geometry.index[~(geometry.isna() | geometry.is_empty)]
        row = drawn.get_indexer(table.obs[table.uns["spatialdata_attrs"]["instance_key"]])
        xy_um = np.where(row[:, None] >= 0, spots.xy_px[row] * spots.mpp, np.nan)
        diameter_um = 2 * float(np.median(spots.radius_px)) * spots.mpp
        return cls(spots.image_key, spots.mpp, xy_um, diameter_um, spots.pitch_um)

    @property
    def window(self) -> Window:
        """The rectangle around all spots."""
        first, last = np.nanmin(self.xy_um, 0) - self.pitch_um / 2, np.nanmax(self.xy_um, 0) + self.pitch_um / 2
        return Window(*first, *last)

    @property
    def placed(self) -> NDArray[np.bool_]:
        """Spots (n_obs,) that have a place."""
        return np.asarray(np.isfinite(self.xy_um).all(1), dtype=bool)

    def nearest(self, other: Places) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Pairs of spots, one here and the nearest there, less than half of the pitch from each other."""
        here, there = np.flatnonzero(self.placed), np.flatnonzero(other.placed)
        distance, found = cKDTree(other.xy_um[there]).query(self.xy_um[here])
        near = distance < self.pitch_um / 2
        return here[near], there[found[near]]

    def draw(self, ax: Axes, shown: NDArray[np.bool_], **style: Any) -> None:
        """Draw some spots (n_obs,) as disks of their size."""
        diameters = np.full(int(shown.sum()), self.diameter_um)
        disks = EllipseCollection(
            diameters,
            diameters,
            np.zeros(len(diameters)),
            units="xy",
            offsets=self.xy_um[shown],
            offset_transform=ax.transData,
            linewidths=0,
            rasterized=len(self.xy_um) > _MANY,
            **style,
        )
        ax.add_collection(disks, autolim=False)


def _pitch(xy: NDArray[np.float64]) -> float:
    """Distance between neighbours."""
    return float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]))


def joined(first: Window, second: Window) -> Window:
    """The rectangle around two."""
    return Window(
        min(first.left, second.left),
        min(first.top, second.top),
        max(first.right, second.right),
        max(first.bottom, second.bottom),
    )
