"""Legacy Spatial Transcriptomics arrays: counts by array position, a picture, and where the spots lie on it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

from sphistex.io.images import ImageLike
from sphistex.io.spots import from_spots

logger = logging.getLogger("sphistex")

_SPOT_COLUMNS = ["x", "y", "pixel_x", "pixel_y"]


def read_st(
    counts_path: str | Path,
    image: ImageLike,
    spots_path: str | Path,
    *,
    spot_diameter_um: float = 100.0,
    spot_pitch_um: float = 200.0,
) -> SpatialData:
    """Read a section of the legacy ST layout (for example the HER2-positive breast tumours of her2st).

    Spots that are in only one of the two tables are left out; how many is logged.

    Parameters
    ----------
    counts_path
        Tab-separated counts, one row per spot, named ``XxY`` by its array position, one column per gene.
    image
        H&E image at full resolution, as in :func:`from_spots`.
    spots_path
        Tab-separated spots under tissue: array positions ``x``, ``y``, centres ``pixel_x``, ``pixel_y`` in image
        pixels, and optionally ``selected`` (0 or 1).
    spot_diameter_um, spot_pitch_um
        Diameter and distance of the spots in µm.

    Returns
    -------
    Image ``"image"``, circles ``"spots"`` and table ``"counts"``; array positions are in ``obs["array_row"]`` (y) and
    ``obs["array_col"]`` (x).

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a table lacks columns or the two have no spot in common.

    Examples
    --------
    >>> sdata = read_st("C3.tsv.gz", "C3.jpg", "C3_selection.tsv")  # doctest: +SKIP
    """
    spots = _read_spots(Path(spots_path))
    counts = pd.read_csv(counts_path, sep="\t", index_col=0)
    common = spots.index.intersection(counts.index)
    if common.empty:
        raise ValueError(
            f"{str(counts_path)!r} (rows {list(counts.index[:3])}…) and {str(spots_path)!r} (spots "
            f"{list(spots.index[:3])}…) have no spot in common"
        )
    logger.info(
        "%d spots in both tables; left out: %d with counts only, %d with a position only",
        len(common),
        len(counts) - len(common),
        len(spots) - len(common),
    )
    spots = spots.loc[common]
    adata = AnnData(
        X=sparse.csr_matrix(counts.loc[common].to_numpy(dtype=np.float32)),
        obs=pd.DataFrame({"array_row": spots["y"], "array_col": spots["x"]}),
        var=pd.DataFrame(index=counts.columns.astype(str)),
    )
    xy_px = spots[["pixel_x", "pixel_y"]].to_numpy(dtype=float)
    return from_spots(image, adata, xy_px, spot_diameter_um=spot_diameter_um, spot_pitch_um=spot_pitch_um)


def _read_spots(path: Path) -> pd.DataFrame:
    """Selected spots, indexed as the rows of the counts are (``XxY``)."""
    spots = pd.read_csv(path, sep="\t")
    missing = [column for column in _SPOT_COLUMNS if column not in spots]
    if missing:
        raise ValueError(f"{str(path)!r} lacks the columns {missing}; it has {list(spots.columns)}")
    if "selected" in spots:
        spots = spots[spots["selected"] == 1]
    spots.index = pd.Index([f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)], name="spot")
    return spots
