"""Real sections with a truth at 8 µm, and the pseudo-Visium spots made from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse

from sphistex.grid import Grid
from sphistex.metrics import thin_counts

DATA = Path(os.environ.get("SPHISTEX_DATA", Path(__file__).parents[2] / "shared" / "data"))
CROPS = {
    "kidney": ("visium_hd_kidney/bins_8um.h5ad", "visium_hd_kidney/he.png", 2.0),
    "pancreas": ("xenium_pancreas/bins_8um.h5ad", "xenium_pancreas/pseudo_he.jpg", 0.5),
}


@dataclass
class Crop:
    """A section with its truth on the 8 µm grid."""

    name: str
    grid: Grid
    counts: sparse.csr_matrix  # (n_superpixels, n_genes) raw counts
    genes: pd.Index
    image: np.ndarray  # (y, x, 3) uint8

    def dense(self, genes: pd.Index, counts: sparse.csr_matrix | None = None) -> np.ndarray:
        """Truth of some genes as (rows, columns, n_genes)."""
        columns = self.genes.get_indexer(genes)
        counts = self.counts if counts is None else counts
        return counts[:, columns].toarray().reshape(*self.grid.shape, -1)


def load(name: str) -> Crop:
    """Read one of the crops."""
    bins, image, mpp = CROPS[name]
    adata = ad.read_h5ad(DATA / bins)
    shape = (int(adata.obs["array_row"].max()) + 1, int(adata.obs["array_col"].max()) + 1)
    Image.MAX_IMAGE_PIXELS = None
    return Crop(
        name, Grid(shape, mpp), sparse.csr_matrix(adata.X), adata.var_names, np.asarray(Image.open(DATA / image))
    )


def hexagonal_spots(grid: Grid, pitch_um: float = 100.0, diameter_um: float = 55.0) -> np.ndarray:
    """Centres in µm (n, 2), x first, of the Visium lattice whose disks lie inside the grid."""
    height, width = (size * grid.pitch_um for size in grid.shape)
    rows = np.arange(diameter_um / 2, height - diameter_um / 2, pitch_um * np.sqrt(3) / 2)
    centres = [
        (x, y)
        for i, y in enumerate(rows)
        for x in np.arange(diameter_um / 2 + (i % 2) * pitch_um / 2, width - diameter_um / 2, pitch_um)
    ]
    return np.array(centres)


def disk_members(grid: Grid, centres_um: np.ndarray, diameter_um: float = 55.0) -> sparse.csr_matrix:
    """Which bins have their centre inside which disk (n_spots, n_superpixels), so that spots are raw integer sums."""
    rows, columns = np.indices(grid.shape)
    x, y = (columns.ravel() + 0.5) * grid.pitch_um, (rows.ravel() + 0.5) * grid.pitch_um
    members = [np.flatnonzero((x - cx) ** 2 + (y - cy) ** 2 <= (diameter_um / 2) ** 2) for cx, cy in centres_um]
    indptr = np.concatenate([[0], np.cumsum([len(m) for m in members])])
    return sparse.csr_matrix((np.ones(indptr[-1]), np.concatenate(members), indptr), (len(centres_um), grid.size))


def spot_table(crop: Crop, counts: sparse.csr_matrix, centres_um: np.ndarray) -> ad.AnnData:
    """Raw sums over the disks as a spot table."""
    sums = sparse.csr_matrix(disk_members(crop.grid, centres_um) @ counts)
    obs = pd.DataFrame(index=[f"spot_{i}" for i in range(len(centres_um))])
    return ad.AnnData(sums.astype(np.float32), obs=obs, var=pd.DataFrame(index=crop.genes))


def halves(crop: Crop, seed: int = 0) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Two independent halves of the truth."""
    first, second = thin_counts(crop.counts, seed=seed)
    return sparse.csr_matrix(first), sparse.csr_matrix(second)
