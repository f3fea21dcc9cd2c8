"""Preprocessing: the image's scale, the tissue, spots between the spots, and spots from what is finer."""

from sphistex.pp.enhance import enhance_spots
from sphistex.pp.mpp import microns_per_pixel
from sphistex.pp.pseudo_spots import pseudo_visium
from sphistex.pp.tissue import tissue_mask

__all__ = ["enhance_spots", "microns_per_pixel", "pseudo_visium", "tissue_mask"]
