"""The image under a map that can be moved and zoomed: a small picture of all of it, and what is looked at, sharply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex.pl._canvas import Window
from sphistex.pl._sources import level_for, read_picture, wanted_mpp

# Pixels that may be read for one look: where a level of the pyramid is missing, the small picture has to do.
_READ_PX = 2**26


@dataclass(frozen=True)
class Background:
    """An image that is read as far as it is looked at.

    Parameters
    ----------
    sdata, image_key, mpp
        The image, and its microns per pixel.
    small, window
        A small picture (y, x, 3) of it, and the window that this covers.
    """

    sdata: SpatialData
    image_key: str
    mpp: float
    small: NDArray[np.uint8]
    window: Window

    @classmethod
    def of(
        cls, sdata: SpatialData, table: AnnData, key: str, image_key: str, mpp: float, window: Window, *, cut: bool
    ) -> Background:
        """That of a result, which brings a small picture of the whole image.

        Where that was taken out, or the image was cut since, one of a window is made.
        """
        kept = table.uns.get("spatial", {}).get(key, {})
        if "hires" not in kept.get("images", {}) or cut:
            return cls(sdata, image_key, mpp, *read_picture(sdata, image_key, window, mpp))
        small = np.asarray(kept["images"]["hires"])
        side_um = mpp / float(kept["scalefactors"]["tissue_hires_scalef"])
        return cls(sdata, image_key, mpp, small, Window(0.0, 0.0, small.shape[1] * side_um, small.shape[0] * side_um))

    def sharp(self, window: Window) -> tuple[NDArray[np.uint8], Window] | None:
        """The image inside a window as sharp as it can be seen, and what it covers; None where ``small`` does."""
        whole = self.window
        seen = Window(
            max(window.left, whole.left),
            max(window.top, whole.top),
            min(window.right, whole.right),
            min(window.bottom, whole.bottom),
        )
        if seen.width <= 0 or seen.height <= 0 or whole.width / self.small.shape[1] <= wanted_mpp(seen):
            return None
        level_mpp = level_for(self.sdata, self.image_key, wanted_mpp(seen), self.mpp)[1]
        if seen.width * seen.height / level_mpp**2 > _READ_PX:
            return None
        picture, covered = read_picture(self.sdata, self.image_key, seen, self.mpp)
        return (picture, covered) if picture.size else None
