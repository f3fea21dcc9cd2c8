"""Preprocessing: the image's scale, the tissue, and spots between the spots."""

from sphistex.pp.enhance import enhance_spots
from sphistex.pp.mpp import microns_per_pixel
from sphistex.pp.tissue import tissue_mask

__all__ = ["enhance_spots", "microns_per_pixel", "tissue_mask"]
