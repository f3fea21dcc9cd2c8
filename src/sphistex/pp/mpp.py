"""How many microns a pixel of the image is wide: the number on which every other length depends."""

from __future__ import annotations

from spatialdata import SpatialData

from sphistex._section import resolve_spots


def microns_per_pixel(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
) -> float:
    """Microns per pixel of the full-resolution image, from the distance between neighbouring spots.

    The pitch of the spot lattice is known exactly (Visium 100 µm), the diameter in Space Ranger's files is not that
    of the spots. What was found is logged (logger ``"sphistex"``, level INFO).

    Parameters
    ----------
    sdata
        SpatialData with an H&E image and circular spots.
    image_key, shapes_key
        Which elements; needed only where there are several.
    coordinate_system
        Through which coordinate system the spots lie on the image; any one that both have, by default.
    mpp
        The value to use instead, checked against the spots.
    spot_pitch_um
        Distance between the centres of neighbouring spots in µm. By default what :mod:`sphistex.io` recorded, else
        100 where the spots lie on a hexagonal lattice.

    Returns
    -------
    Microns per image pixel.

    Raises
    ------
    KeyError
        If a named element does not exist.
    ValueError
        If elements are missing, ambiguous or sheared, if the pitch of the spots is not known, or if ``mpp``
        contradicts it by more than 20 %.

    Warns
    -----
    UserWarning
        If the image is coarser than 1 µm per pixel; names the image with the full resolution if there is one.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from sphistex.io import from_spots
    >>> xy = np.array([[x, y] for y in range(100, 800, 400) for x in range(100, 1200, 400)])
    >>> counts = AnnData(np.ones((len(xy), 3), dtype=np.float32))
    >>> picture = np.full((800, 1200, 3), 255, dtype=np.uint8)
    >>> microns_per_pixel(from_spots(picture, counts, xy, spot_diameter_um=100, spot_pitch_um=200))
    0.5
    """
    return resolve_spots(
        sdata,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        mpp=mpp,
        spot_pitch_um=spot_pitch_um,
    ).mpp
