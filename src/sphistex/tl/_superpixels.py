"""Where the superpixels of a result lie: its raster, and how other elements lie on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.transformations import Affine, BaseTransformation, Identity, Sequence, Translation

from sphistex._elements import finest, transforms_of
from sphistex._section import affine_of
from sphistex.grid import SUPERPIXEL_UM, Grid
from sphistex.tl._cut import placed_too_far
from sphistex.tl._trust import made_how

# Coordinate systems may put an element onto the raster by so many superpixels differently before that is a question.
_MAX_DISAGREEMENT = 0.1


@dataclass(frozen=True)
class Superpixels:
    """The raster of a result, one pixel per superpixel, in whose coordinates areas are measured.

    Parameters
    ----------
    labels_key
        Labels that the table annotates.
    shape
        Rows and columns of the raster.
    place
        Of each row of the table its pixel of the raster, row by row (n_obs,).
    pitch_um
        Side of a superpixel in µm.
    to_px
        Affine (3, 3) from the raster to the pixels of the image, in which ``obsm["spatial"]`` of the table is.
    transforms
        Transformations of the raster to all its coordinate systems.
    """

    labels_key: str
    shape: tuple[int, int]
    place: NDArray[np.intp]
    pitch_um: float
    to_px: NDArray[np.float64]
    transforms: dict[str, BaseTransformation]

    @classmethod
    def of(cls, sdata: SpatialData, table: AnnData, table_key: str) -> Superpixels:
        """Superpixels of a result, or of a truth that was measured on the same lattice.

        Raises
        ------
        KeyError, ValueError
            If the table is none of them, its labels are gone or of others, or it is one superpixel.
        """
        regions = np.atleast_1d(table.uns.get("spatialdata_attrs", {}).get("region", []))  # a list after a query
        spots = any(str(region) in sdata.shapes for region in regions)
        if len(regions) != 1 or spots or not {"array_row", "array_col"} <= set(table.obs):
            raise ValueError(
                f"table_key={table_key!r} is no table of superpixels, it annotates {regions.tolist()}: name a "
                "result of sphistex.tl.super_resolve"
            )
        region = str(regions[0])
        if region not in sdata.labels:
            raise KeyError(f"table_key={table_key!r} annotates the labels {region!r}, which are gone: make it again")
        if table.n_obs < 2:
            raise ValueError(f"table_key={table_key!r} has {table.n_obs} superpixels: at least two are needed")
        ids = np.asarray(finest(sdata.labels[region]))
        place = _place(ids, table.obs[table.uns["spatialdata_attrs"]["instance_key"]].to_numpy())
        if place is None:
            raise ValueError(
                f"table_key={table_key!r} and the labels {region!r} are not of the same superpixels: each row needs "
                "one pixel; were both cut in the same way?"
            )
        to_px = _to_px(np.column_stack([place % ids.shape[1], place // ids.shape[1]]), table.obsm["spatial"])
        return cls(region, ids.shape, place, _pitch_um(table, table_key), to_px, _transforms(sdata, table, table_key))

    @property
    def grid(self) -> Grid:
        """The raster as a grid whose pixels are superpixels."""
        return Grid(self.shape, mpp=self.pitch_um, pitch_um=self.pitch_um)

    @property
    def mpp(self) -> float:
        """Microns per pixel of the image."""
        return self.pitch_um / float(self.to_px[0, 0])

    def raster(self, values: NDArray, fill: Any = np.nan) -> NDArray:
        """Values (n_obs,) in their places, (rows, columns)."""
        out = np.full(self.shape, fill, dtype=np.result_type(values.dtype, type(fill)))
        out.ravel()[self.place] = values
        return out

    def to_raster(self, element: Any, what: str, coordinate_system: str | None = None) -> NDArray[np.float64]:
        """Affine (3, 3) from an element to the raster, through a coordinate system that both have.

        Raises
        ------
        ValueError
            If they have none in common, or several that do not agree and none is named.
        """
        systems = transforms_of(element)
        found = {
            name: np.linalg.inv(affine_of(self.transforms[name])) @ affine_of(systems[name])
            for name in systems
            if name in self.transforms and coordinate_system in (None, name)
        }
        if not found:
            asked = "" if coordinate_system is None else f"coordinate_system={coordinate_system!r}: "
            raise ValueError(
                f"{asked}{what} are in the coordinate systems {sorted(systems)}, the result's labels "
                f"{self.labels_key!r} in {sorted(self.transforms)}: they need one in common; align them, or set a "
                "transformation with spatialdata.transformations.set_transformation"
            )
        first, *others = found
        corners = np.array([[0, 0, 1], [*self.shape[::-1], 1]]).T
        for other in others:
            if np.abs((found[other] @ np.linalg.inv(found[first]) - np.eye(3)) @ corners).max() > _MAX_DISAGREEMENT:
                raise ValueError(
                    f"{what} lie differently on the result in the coordinate systems {first!r} and {other!r}: choose "
                    "one with coordinate_system="
                )
        return found[first]

    def transforms_from_px(self) -> dict[str, BaseTransformation]:
        """Transformations from pixels of the image to all coordinate systems of the raster."""
        from_px = np.linalg.inv(self.to_px)
        matrices = {name: affine_of(transform) @ from_px for name, transform in self.transforms.items()}
        return {
            name: Identity() if np.allclose(matrix, np.eye(3)) else Affine(matrix, ("x", "y"), ("x", "y"))
            for name, matrix in matrices.items()
        }


def _transforms(sdata: SpatialData, table: AnnData, table_key: str) -> dict[str, BaseTransformation]:
    """Transformations of the raster of a result; where a query has put it too far, it is put back."""
    transforms = transforms_of(sdata.labels[str(np.ravel(table.uns["spatialdata_attrs"]["region"])[0])])
    try:
        made = made_how(table, table_key)
    except ValueError:  # a truth
        return transforms
    if "section" not in made or not (too_far := placed_too_far(sdata, table, made)).any():
        return transforms
    back = Translation(-too_far.astype(float), axes=("x", "y"))
    return {name: Sequence([back, transform]) for name, transform in transforms.items()}


def _pitch_um(table: AnnData, table_key: str) -> float:
    """Side of a superpixel; of a truth, which does not say it, that of every grid."""
    try:
        return float(made_how(table, table_key)["pitch_um"])
    except ValueError:
        return SUPERPIXEL_UM


def _place(ids: NDArray[np.integer], instances: NDArray) -> NDArray[np.intp] | None:
    """Pixel of each instance, row by row; None if some have none or several."""
    pixels = np.flatnonzero(ids)
    order = np.argsort(ids.ravel()[pixels], kind="stable")
    found = ids.ravel()[pixels][order]
    first, last = (np.searchsorted(found, instances, side=side) for side in ("left", "right"))
    return pixels[order][first] if (last - first == 1).all() else None


def _to_px(column_row: NDArray[np.intp], xy_px: NDArray) -> NDArray[np.float64]:
    """Affine from the raster to pixels of the image, which superpixels' centres tell."""
    apart = column_row.sum(1)
    one, other = int(np.argmin(apart)), int(np.argmax(apart))
    pitch_px = (xy_px[other] - xy_px[one]).sum() / (apart[other] - apart[one])
    corner = xy_px[one] - (column_row[one] + 0.5) * pitch_px
    return np.array([[pitch_px, 0, corner[0]], [0, pitch_px, corner[1]], [0, 0, 1]])
