"""Find the image, spots and counts of one section in a SpatialData object, and how they lie on each other."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.transformations.transformations import BaseTransformation
from xarray import DataArray

from sphistex._checks import check_counts, check_rgb, is_number
from sphistex._elements import (
    INPUT_RECORD,
    are_circles,
    candidates,
    choose_image,
    choose_shapes,
    choose_table,
    hd_bin_um,
    is_spots,
    none_of,
    transforms_of,
)
from sphistex._scale import VISIUM_DIAMETER_UM, VISIUM_PITCH_UM, Lattice, lattice_of, scale_from_lattice
from sphistex.bags import Bags
from sphistex.grid import SUPERPIXEL_UM, Grid

logger = logging.getLogger("sphistex")

_COARSE_MPP = 1.0
# A transformation may stretch one axis by this much more than the other before it counts as shearing.
_MAX_ANISOTROPY = 0.01
_MAX_DISAGREEMENT_PX = 1.0
# Spots narrower than this share of a superpixel are finer than it.
_MIN_SIDE = 0.5
# Between these (µm), the diameter of a Visium spot is the theoretical 65 µm of Space Ranger.
_THEORETICAL_DIAMETER_UM = (60.0, 70.0)


@dataclass(frozen=True)
class Spots:
    """Spots (or bins) on their image, whether or not they have counts.

    Parameters
    ----------
    image_key, shapes_key
        Names of the elements in the SpatialData object.
    coordinate_system
        Coordinate system through which spots were brought onto the image.
    image
        Full-resolution RGB image, (c, y, x) uint8, lazy.
    image_transforms
        Transformations from image pixels to every coordinate system that the image has.
    xy_px
        Spot centres (n_spots, 2) in image pixels, x first.
    radius_px
        Spot radii (n_spots,) in image pixels; of polygons, those of disks of the same area.
    outlines_px
        Polygons (n_spots,) in image pixels where spots are not disks, otherwise None.
    mpp
        Microns per image pixel.
    pitch_um
        Distance between neighbouring spots, centre to centre, in µm.
    """

    image_key: str
    shapes_key: str
    coordinate_system: str
    image: DataArray
    image_transforms: dict[str, BaseTransformation]
    xy_px: NDArray[np.float64]
    radius_px: NDArray[np.float64]
    outlines_px: NDArray[np.object_] | None
    mpp: float
    pitch_um: float

    @property
    def grid(self) -> Grid:
        """The superpixel lattice over the image."""
        return Grid.over_image((self.image.sizes["y"], self.image.sizes["x"]), self.mpp)

    @cached_property
    def bags(self) -> Bags:
        """The spots as bags of superpixels, whether on tissue or not."""
        if self.outlines_px is None:
            return Bags.from_disks(self.grid, self.xy_px, self.radius_px)
        return Bags.from_polygons(self.grid, self.outlines_px)


@dataclass(frozen=True)
class Section(Spots):
    """One section: spots on their image, with counts, checked.

    Parameters
    ----------
    table_key
        Name of the table in the SpatialData object.
    table
        Raw counts; row i belongs to spot i.
    """

    table_key: str
    table: AnnData

    @property
    def has_spots(self) -> bool:
        """False of an image alone."""
        return len(self.xy_px) > 0

    @property
    def is_predicted(self) -> bool:
        """Whether the counts of its spots were predicted from the image, and not measured."""
        return is_predicted(self.table, self.table_key)


def resolve_section(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
    strict: bool = False,
) -> Section:
    """Find and check the elements of one section; nothing is computed from the image and nothing is changed.

    Parameters
    ----------
    sdata
        SpatialData with an H&E image, circular spots (or polygons, such as the bins of Visium HD) and a table of raw
        counts that annotates them.
    image_key, shapes_key, table_key
        Which elements; needed only where there are several. Of Space Ranger's ``*_full_image``, ``*_hires_image``
        and ``*_lowres_image`` the finest is taken, of Visium HD's bins those of 8 µm.
    coordinate_system
        Through which coordinate system image and spots lie on each other; any one that both have, by default.
    mpp
        Microns per image pixel, when it shall not be derived from the spots.
    spot_pitch_um
        Distance between neighbouring spots in µm, when it is neither recorded nor Visium's 100.
    strict
        Refuse counts that are not whole numbers instead of warning.

    Raises
    ------
    KeyError
        If a named element does not exist.
    ValueError
        If elements are missing or ambiguous, do not fit each other, or hold what cannot be used.
    """
    spots = resolve_spots(
        sdata,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        mpp=mpp,
        spot_pitch_um=spot_pitch_um,
    )
    table_key = choose_table(sdata, table_key, spots.shapes_key)
    table, rows = _rows_of_shapes(sdata, table_key, spots.shapes_key)
    if is_predicted(table, table_key):
        table = _predicted_counts(table, table_key)
    else:
        check_counts(table, table_key, strict=strict)
    _check_inside(spots, rows)
    return Section(
        image_key=spots.image_key,
        shapes_key=spots.shapes_key,
        table_key=table_key,
        coordinate_system=spots.coordinate_system,
        image=spots.image,
        image_transforms=spots.image_transforms,
        table=table,
        xy_px=spots.xy_px[rows],
        radius_px=spots.radius_px[rows],
        outlines_px=None if spots.outlines_px is None else spots.outlines_px[rows],
        mpp=spots.mpp,
        pitch_um=spots.pitch_um,
    )


def is_predicted(table: AnnData, name: str) -> bool:
    """Whether the table ``name`` was made by :func:`sphistex.tl.predict_histology`."""
    return bool(table.uns.get(name, {}).get("predicted", False))


def _predicted_counts(table: AnnData, name: str) -> AnnData:
    """The same table with expected counts in the place of log-normalised expression."""
    if "counts" not in table.layers:
        raise ValueError(
            f"table {name!r} was predicted and has lost layers['counts']: make it again with "
            "sphistex.tl.predict_histology(overwrite=True)"
        )
    counts = table.copy()
    counts.X = counts.layers["counts"]
    return counts


def resolve_image(
    sdata: SpatialData, *, image_key: str | None = None
) -> tuple[str, DataArray, dict[str, BaseTransformation]]:
    """Find the H&E image: its name, its pixels (c, y, x) as lazy 8-bit RGB, and its transformations.

    Raises
    ------
    KeyError
        If ``image_key`` does not exist.
    ValueError
        If there is no image, several and none named, or one that is not 8-bit RGB(A).
    """
    image_key = choose_image(sdata, image_key, among=None)
    image = check_rgb(_full_resolution(sdata.images[image_key]), image_key)
    if image.chunks is None:
        image = image.chunk()
    return image_key, image, transforms_of(sdata.images[image_key])


def image_alone(sdata: SpatialData, genes: Sequence[str], *, image_key: str | None, mpp: float) -> Section:
    """A section of which there is only the image: without spots, and with an empty table of ``genes``.

    Raises
    ------
    KeyError, ValueError
        As :func:`resolve_image`, and if ``mpp``, the microns per image pixel, makes no sense.
    """
    check_mpp(mpp)
    image_key, image, transforms = resolve_image(sdata, image_key=image_key)
    none = np.zeros(0)
    table = AnnData(np.zeros((0, len(genes)), dtype=np.float32), var=pd.DataFrame(index=list(genes)))
    return Section(
        image_key=image_key,
        shapes_key="",
        table_key="",
        coordinate_system="",
        image=image,
        image_transforms=transforms,
        table=table,
        xy_px=none.reshape(0, 2),
        radius_px=none,
        outlines_px=None,
        mpp=mpp,
        pitch_um=np.inf,
    )


def is_image_alone(sdata: SpatialData) -> bool:
    """Whether there is nothing that could be spots: no circles nor bins, and no other shapes with counts."""
    return not (has_spots(sdata) or (candidates(sdata, "shapes") and candidates(sdata, "tables")))


def check_mpp(mpp: float) -> None:
    """Refuse microns per pixel that are none, or whose pixels are larger than superpixels."""
    if not (is_number(mpp) and 0 < mpp <= SUPERPIXEL_UM):
        raise ValueError(
            f"mpp={mpp!r} must be the microns per pixel of the image, such as 0.25 or 0.5, and at most "
            f"{SUPERPIXEL_UM:g}, the side of a superpixel"
        )


def recorded_mpp(sdata: SpatialData, image_key: str | None = None) -> float | None:
    """Microns per pixel that :func:`sphistex.io.read_image` noted of an image, if it did, for where no spots tell it.

    Raises as :func:`resolve_image` does where it is not clear which image.
    """
    image_key = choose_image(sdata, image_key, among=None)
    return sdata.attrs.get("sphistex", {}).get(INPUT_RECORD, {}).get(image_key, {}).get("mpp")


def has_spots(sdata: SpatialData) -> bool:
    """Whether there are circles or bins that could be spots."""
    return any(is_spots(name, sdata.shapes[name]) for name in candidates(sdata, "shapes"))


def resolve_spots(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
) -> Spots:
    """Find image and spots and the scale between them; parameters and errors as in :func:`resolve_section`."""
    if image_key is None and not candidates(sdata, "images"):
        raise ValueError(none_of("image", sdata))
    shapes_key = choose_shapes(sdata, shapes_key, table_key)
    shapes = _drawn(sdata, shapes_key)
    image_key = choose_image(
        sdata, image_key, among={coordinate_system} if coordinate_system else set(transforms_of(shapes))
    )
    image_key, image, transforms = resolve_image(sdata, image_key=image_key)
    system, to_image = _to_image(shapes, f"spots {shapes_key!r}", image, image_key, transforms, coordinate_system)
    xy_px, radius_px, outlines_px = _placed(shapes, to_image, hd_bin_um(shapes_key))
    mpp, pitch_um, radius_px = _scale(sdata, image_key, shapes_key, xy_px, radius_px, mpp, spot_pitch_um)
    _check_resolved(shapes_key, radius_px * mpp)
    return Spots(image_key, shapes_key, system, image, transforms, xy_px, radius_px, outlines_px, mpp, pitch_um)


def affine_to_image(sdata: SpatialData, element: Any, image_key: str, what: str) -> NDArray[np.float64]:
    """Affine (3, 3) from an element to the pixels of an image, through a coordinate system that both have."""
    _, image, transforms = resolve_image(sdata, image_key=image_key)
    return _to_image(element, what, image, image_key, transforms, None)[1]


# ---------------------------------------------------------------------------------------------- geometry


def _to_image(
    element: Any,
    what: str,
    image: DataArray,
    image_key: str,
    image_systems: Mapping[str, BaseTransformation],
    named: str | None,
) -> tuple[str, NDArray[np.float64]]:
    """Coordinate system used, and affine from the element to image pixels; any system will do if all agree."""
    systems = transforms_of(element)
    to_image = {
        name: np.linalg.inv(affine_of(image_systems[name])) @ affine_of(systems[name])
        for name in systems
        if name in image_systems
    }
    have = f"image {image_key!r} is in {sorted(image_systems)}, {what} in {sorted(systems)}"
    if not to_image:
        raise ValueError(
            f"{have}: they have no coordinate system in common; align them, or set a transformation with "
            "`spatialdata.transformations.set_transformation`"
        )
    if named is not None and named not in to_image:
        raise ValueError(f"coordinate_system={named!r} does not hold both: {have}")
    first, *others = to_image if named is None else [named]
    corner = np.array([image.sizes["x"], image.sizes["y"], 1.0])
    for other in others:
        if np.abs((to_image[other] @ np.linalg.inv(to_image[first]) - np.eye(3)) @ corner).max() > _MAX_DISAGREEMENT_PX:
            raise ValueError(
                f"{what} and image {image_key!r} lie differently on each other in the coordinate systems {first!r} and "
                f"{other!r}; choose one with coordinate_system="
            )
    stretch = np.linalg.svd(to_image[first][:2, :2], compute_uv=False)
    if stretch[1] <= 0 or stretch[0] / stretch[1] - 1 > _MAX_ANISOTROPY:
        raise ValueError(
            f"in {first!r}, {what} lie sheared or stretched on image {image_key!r} (scales {stretch[0]:.4g} and "
            f"{stretch[1]:.4g}), so that there is no one scale; use transformations that only shift, rotate, mirror "
            "and scale evenly"
        )
    return first, to_image[first]


def _drawn(sdata: SpatialData, shapes_key: str) -> Any:
    """The shapes that are not empty, as the outlines of some cells are."""
    shapes = sdata.shapes[shapes_key]
    empty = shapes.geometry.isna() | shapes.geometry.is_empty
    if empty.all():
        raise ValueError(f"all {len(shapes)} shapes of {shapes_key!r} are empty: nothing says where they lie")
    return shapes[~empty] if empty.any() else shapes


def _placed(
    shapes: Any, to_image: NDArray[np.float64], bin_um: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_] | None]:
    """Centres (n, 2), radii (n,) and, of what is no disk, outlines (n,) in image pixels."""
    geometry, stretch = shapes.geometry, np.sqrt(abs(np.linalg.det(to_image)))
    if are_circles(shapes) and bin_um is None:
        return moved(shapely.get_coordinates(geometry), to_image), shapes["radius"].to_numpy(float) * stretch, None
    if are_circles(shapes):  # bins are squares, also where the reader was asked for circles
        geometry = geometry.buffer(shapes["radius"], cap_style="square")
    outlines = shapely.transform(geometry.to_numpy(), lambda xy: moved(xy, to_image))
    return shapely.get_coordinates(shapely.centroid(outlines)), np.sqrt(shapely.area(outlines) / np.pi), outlines


def moved(xy: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 2) after an affine (3, 3)."""
    return xy @ affine[:2, :2].T + affine[:2, 2]


def affine_of(transformation: BaseTransformation) -> NDArray[np.float64]:
    """The transformation as a matrix (3, 3) for x and y."""
    return np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)


def _full_resolution(image: Any) -> DataArray:
    return image if isinstance(image, DataArray) else get_pyramid_levels(image, n=0)


# ------------------------------------------------------------------------------------------------- scale


def _scale(
    sdata: SpatialData,
    image_key: str,
    shapes_key: str,
    xy_px: NDArray[np.float64],
    radius_px: NDArray[np.float64],
    mpp: float | None,
    spot_pitch_um: float | None,
) -> tuple[float, float, NDArray[np.float64]]:
    """Microns per pixel, spot pitch in µm and spot radii in pixels; logs what was found, warns of a coarse image."""
    recorded = sdata.attrs.get("sphistex", {}).get(INPUT_RECORD, {}).get(shapes_key, {}).get("pitch_um")
    lattice, bin_um = None, hd_bin_um(shapes_key)
    if bin_um is not None:  # bins touch each other, also where most of them are missing
        recorded, lattice = bin_um, Lattice(float(np.sqrt(np.pi) * np.median(radius_px)), "square")
    lattice = lattice_of(xy_px) if lattice is None else lattice
    found = scale_from_lattice(lattice, mpp=mpp, spot_pitch_um=recorded if spot_pitch_um is None else spot_pitch_um)
    logger.info(
        "image %r: %.4g µm per pixel (%s); spots %r %.4g px = %.4g µm apart, %s lattice",
        image_key,
        found,
        "from the spot pitch" if mpp is None else "as given",
        shapes_key,
        lattice.pitch_px,
        lattice.pitch_px * found,
        lattice.kind,
    )
    if found > _COARSE_MPP:
        finer = _finer_image(sdata, image_key)
        remedy = (
            f"pass image_key={finer!r}, which is finer" if finer else "use the full-resolution scan if there is one"
        )
        warnings.warn(
            f"image {image_key!r} has {found:.3g} µm per pixel, too coarse to show nuclei well (0.5 is best, up to "
            f"{_COARSE_MPP:g} is fine): {remedy}",
            UserWarning,
            stacklevel=4,
        )
    # results record the pitch that was found, and are looked up with it
    visium = recorded is None and (spot_pitch_um is None or np.isclose(spot_pitch_um, VISIUM_PITCH_UM, rtol=1e-3))
    if lattice.kind == "hexagonal" and visium:
        radius_px = _visium_radius(radius_px, lattice.pitch_px, shapes_key)
    return found, lattice.pitch_px * found, radius_px


def _check_resolved(shapes_key: str, radius_um: NDArray[np.float64]) -> None:
    """Refuse spots that are much smaller than the superpixels that they shall be resolved into."""
    side_um = float(np.sqrt(np.pi) * np.median(radius_um))
    if side_um < _MIN_SIDE * SUPERPIXEL_UM:
        raise ValueError(
            f"spots or bins {shapes_key!r} are {side_um:.2g} µm wide, finer than the superpixels of "
            f"{SUPERPIXEL_UM:g} µm: there is nothing to resolve. Of Visium HD, take the bins of 8 or 16 µm "
            "(shapes_key=, or bin_size=8 when reading)"
        )


def _visium_radius(radius_px: NDArray[np.float64], pitch_px: float, shapes_key: str) -> NDArray[np.float64]:
    """Space Ranger writes the diameter of a theoretical 65 µm spot; the real one measures 55 µm."""
    diameter_um = 2 * float(np.median(radius_px)) / pitch_px * VISIUM_PITCH_UM
    if not _THEORETICAL_DIAMETER_UM[0] < diameter_um < _THEORETICAL_DIAMETER_UM[1]:
        return radius_px
    logger.info(
        "spots %r: Space Ranger's diameter (%.3g µm) replaced by that of a Visium spot (%g µm)",
        shapes_key,
        diameter_um,
        VISIUM_DIAMETER_UM,
    )
    return radius_px * (VISIUM_DIAMETER_UM / diameter_um)


def _finer_image(sdata: SpatialData, image_key: str) -> str | None:
    """The image that shows the same at a clearly finer resolution, if there is one."""
    own = transforms_of(sdata.images[image_key])
    finest, best = None, 0.8
    for other in candidates(sdata, "images"):
        systems = transforms_of(sdata.images[other])
        for name in own.keys() & systems.keys() if other != image_key else ():
            ratio = _pixel_size(systems[name]) / _pixel_size(own[name])
            if ratio < best and _full_resolution(sdata.images[other]).sizes["c"] in (3, 4):
                finest, best = other, ratio
    return finest


def _pixel_size(transformation: BaseTransformation) -> float:
    return float(np.sqrt(abs(np.linalg.det(affine_of(transformation)[:2, :2]))))


# ------------------------------------------------------------------------------------------- table rows


def _rows_of_shapes(sdata: SpatialData, table_key: str, shapes_key: str) -> tuple[AnnData, NDArray[np.intp]]:
    """Rows of the table that belong to the shapes, and for each of them the place of its circle."""
    table, circles = sdata.tables[table_key], _drawn(sdata, shapes_key).index
    attrs = table.uns["spatialdata_attrs"]
    own = (table.obs[attrs["region_key"]] == shapes_key).to_numpy()
    place = circles.get_indexer(table.obs[attrs["instance_key"]])
    if (place[own] == -1).all():
        key, held = attrs["instance_key"], table.obs[attrs["instance_key"]]
        raise ValueError(
            f"no row of the table {table_key!r} annotates the shapes {shapes_key!r}: its column {key!r} holds "
            f"{_head(held)}, the shapes' index {_head(circles)}"
        )
    used = own & (place >= 0)
    if (lost := int(own.sum() - used.sum())) > 0:
        warnings.warn(
            f"{lost} rows of the table {table_key!r} have no shape in {shapes_key!r}, or an empty one: left out",
            UserWarning,
            stacklevel=3,
        )
    if (bare := len(circles) - int(used.sum())) > 0:
        logger.info(
            "%d of %d shapes %r have no row in the table %r: left out", bare, len(circles), shapes_key, table_key
        )
    return table[used], place[used]


def _head(values: Iterable[Any]) -> str:
    return f"{list(values)[:3]}…"


def _check_inside(spots: Spots, rows: NDArray[np.intp]) -> None:
    width, height = spots.image.sizes["x"], spots.image.sizes["y"]
    xy = spots.xy_px[rows]
    outside = ~((xy >= 0) & (xy <= [width, height])).all(axis=1)
    if outside.any():
        worst = xy[outside][0]
        raise ValueError(
            f"{int(outside.sum())} of {len(xy)} spots of {spots.shapes_key!r} lie outside the image "
            f"{spots.image_key!r} ({width} × {height} px), such as one at x = {worst[0]:.0f}, y = {worst[1]:.0f}; "
            "check the transformations and the order of x and y, or leave those spots out"
        )
