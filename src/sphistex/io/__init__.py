"""Other shapes of input into SpatialData."""

from sphistex.io.bins import from_bins
from sphistex.io.gene_sets import read_gmt
from sphistex.io.legacy_st import read_st
from sphistex.io.slides import read_image
from sphistex.io.spots import from_spots

__all__ = ["from_bins", "from_spots", "read_gmt", "read_image", "read_st"]
