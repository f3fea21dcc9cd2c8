"""Other shapes of input into SpatialData."""

from sphistex.io.bins import from_bins
from sphistex.io.legacy_st import read_st
from sphistex.io.spots import from_spots

__all__ = ["from_bins", "from_spots", "read_st"]
