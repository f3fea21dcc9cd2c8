"""A SpatialData section from a slide and nothing else."""

from __future__ import annotations

from spatialdata import SpatialData

from sphistex._elements import INPUT_RECORD
from sphistex.io.images import ImageLike, open_picture
from sphistex.io.spots import image_element


def read_image(image: ImageLike, *, mpp: float | None = None, image_key: str = "image") -> SpatialData:
    """Make a SpatialData object of an H&E image alone, of any size.

    Nothing is decoded yet: of whole slides only the parts that are needed are read, when they are needed, and of their
    coarser levels what is looked at from afar. The microns per pixel are kept with the image, so that later steps need
    not be told.

    Parameters
    ----------
    image
        8-bit RGB(A) image: the path of a TIFF file (SVS and other tiled pyramids included), of an OME-Zarr folder, of
        a JPEG or PNG file, or of a file in a scanner's own format (with the extra ``wsi``); or an array (y, x, c) or
        (c, y, x).
    mpp
        Microns per pixel at full resolution; by default what the file says, if it does (OME-XML, Aperio, OME-Zarr, the
        resolution of a TIFF).
    image_key
        Name of the image.

    Returns
    -------
    SpatialData with the image, in the coordinate system ``"global"``, whose unit is one image pixel.

    Raises
    ------
    FileNotFoundError
        If ``image`` is a path that does not exist.
    ImportError
        If the file needs the extra ``wsi``, which is not installed.
    ValueError
        If the image cannot be used, or ``mpp`` is no number of microns.

    Examples
    --------
    >>> import numpy as np
    >>> sdata = read_image(np.full((400, 600, 3), 255, dtype=np.uint8), mpp=0.5)
    >>> sorted(sdata.images)
    ['image']
    """
    if mpp is not None and not 0 < mpp < 100:
        raise ValueError(f"mpp={mpp!r} must be the microns per pixel of the image, such as 0.25 or 0.5")
    picture = open_picture(image)
    scale = (picture.mpp or 0) if mpp is None else mpp
    record = {INPUT_RECORD: {image_key: {"mpp": float(scale)}}} if 0 < scale < 100 else {}
    return SpatialData(images={image_key: image_element(picture)}, attrs={"sphistex": record})
