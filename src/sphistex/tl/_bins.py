"""Places on a lattice: spots, or square bins of superpixels; which are neighbours, and what lies in each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from spatialdata import SpatialData

from sphistex._checks import is_number
from sphistex._scale import lattice_of
from sphistex._section import Section
from sphistex.tl._inputs import spots_on_tissue, tissue_of

# A bin is looked at where this share of it is tissue.
_FILLED = 0.5
# Lattice neighbours are nearer than this multiple of the pitch.
_NEAR = 1.2
# By how much of a superpixel a bin's side may differ from a multiple.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Places:
    """Places on a lattice, and what is added up in each.

    Parameters
    ----------
    pool
        Which rows of a table are added up where (n_places, n_obs).
    xy
        Where the places lie (n_places, 2).
    pitch
        Distance between neighbours.
    kind
        Of the lattice.
    """

    pool: sparse.csc_array
    xy: NDArray[np.float64]
    pitch: float
    kind: str

    @property
    def graph(self) -> sparse.csr_matrix:
        """Which places are neighbours on the lattice (n_places, n_places)."""
        first, second = cKDTree(self.xy).query_pairs(_NEAR * self.pitch, output_type="ndarray").T
        n = len(self.xy)
        one_way = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(n, n))
        return sparse.csr_matrix(one_way + one_way.T)


def bins_of(table: AnnData, pitch_um: float, side_um: float) -> tuple[Places, int]:
    """Square bins of superpixels that are tissue for the most part, and the side of one in superpixels.

    Raises
    ------
    ValueError
        If superpixels do not fill such bins, or tissue none of them.
    """
    factor = round(side_um / pitch_um) if is_number(side_um) else 0
    if factor < 1 or abs(side_um / pitch_um - factor) > _ROUNDING:
        raise ValueError(f"bin_um={side_um!r} must be a multiple of {pitch_um:g} µm, the side of a superpixel")
    bin_of = table.obs[["array_row", "array_col"]].to_numpy() // factor
    found, size = np.unique(bin_of, axis=0, return_counts=True)
    found = found[size >= _FILLED * factor**2]
    if not len(found):
        raise ValueError(f"bin_um={side_um:g}: no bin of this size is tissue for the most part; choose a smaller one")
    return Places(_pool(bin_of, found), found[:, ::-1].astype(float), 1.0, "square"), factor


def measured_places(sdata: SpatialData, made: dict[str, Any], section: Section, bins: Places, factor: int) -> Places:
    """The spots on tissue; or of Visium HD the bins, pooled in those of the result."""
    if section.outlines_px is not None:
        superpixel = np.floor(section.xy_px[:, ::-1] / section.grid.pitch_px).astype(int) - np.asarray(made["crop"])
        return replace(bins, pool=_pool(superpixel // factor, bins.xy[:, ::-1].astype(int)))
    kept = np.flatnonzero(spots_on_tissue(section, tissue_of(sdata, section, str(made["tissue_key"]))))
    pool = sparse.eye_array(len(section.xy_px), dtype=np.float32, format="csr")[kept]
    return Places(sparse.csc_array(pool), section.xy_px[kept], *lattice_of(section.xy_px[kept]))


def _pool(place_of: NDArray[np.intp], places: NDArray[np.intp]) -> sparse.csc_array:
    """What lies in each of the places, (n_places, n) of ones; both are rows and columns, those of places in order."""
    width = max(place_of[:, 1].max(), places[:, 1].max()) + 1
    inside = np.flatnonzero((place_of >= 0).all(1))
    number, numbers = place_of[inside] @ [width, 1], places @ [width, 1]
    row = np.minimum(np.searchsorted(numbers, number), len(numbers) - 1)
    known = numbers[row] == number
    ones = np.ones(int(known.sum()), dtype=np.float32)
    return sparse.csc_array((ones, (row[known], inside[known])), shape=(len(places), len(place_of)))
