"""Outlines of the regions of a raster."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray


def outlines(regions: NDArray[np.integer]) -> NDArray[np.object_]:
    """Polygons (n,) along the sides of the pixels of regions 1 to n (rows, columns), x to the right, y down.

    Examples
    --------
    >>> outlines(np.array([[0, 1, 1], [0, 0, 1]]))[0].area
    3.0
    """
    padded = np.pad(regions, ((0, 0), (1, 1)))
    starts = np.flatnonzero(padded[:, 1:] != padded[:, :-1])  # runs of one region, and the gaps between them
    row, column = np.divmod(starts, regions.shape[1] + 1)
    region = padded[row, column + 1]
    runs = np.flatnonzero(region)
    runs = runs[np.argsort(region[runs], kind="stable")]
    boxes = shapely.box(column[runs], row[runs], column[runs + 1], row[runs] + 1)
    ends = np.cumsum(np.bincount(region[runs])[1:])[:-1]
    whole = [shapely.union_all(part) for part in np.split(boxes, ends)] if len(runs) else []
    return np.asarray(shapely.simplify(np.array(whole, dtype=object), 0))
