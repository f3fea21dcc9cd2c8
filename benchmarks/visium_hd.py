"""What the image adds to Visium HD: bins of one half of the kidney's counts, scored against the other half.

    python benchmarks/visium_hd.py --bin-um 8

Beside the map: the bins as they are, and the bins smoothed by a Gaussian of the width that scores best.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from scipy import sparse
from scipy.ndimage import gaussian_filter
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.bench.datasets import find
from sphistex.grid import Grid
from sphistex.metrics import correlation_by_scale, thin_counts
from sphistex.metrics.lattice import superpixels_of
from sphistex.tl._genes import choose_genes

FACTORS = (1, 2, 4, 8)
SIGMAS_UM = (8.0, 16.0, 24.0, 32.0, 48.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-um", type=int, default=8)
    parser.add_argument("--genes", type=int, default=150)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    section = find("kidney", None).read()
    genes = choose_genes(section["counts"], arguments.genes)
    grid, counts = on_grid(section)
    seen, scored = thin_counts(counts, seed=0)
    sdata = as_visium_hd(section, grid, seen, arguments.bin_um)
    sx.settings.progress = False
    sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0")
    started = time.perf_counter()
    sx.tl.super_resolve(sdata, genes=genes, encoder="efficientnet_lite0")
    print(f"fit and predict {time.perf_counter() - started:.0f} s")

    mask = np.asarray(sdata.labels["tissue"]) > 0
    table = sdata.tables["superres"]
    row, column = np.array(table.uns["superres"]["crop"])[:, None] + table.obs[["array_row", "array_col"]].to_numpy().T
    resolved = np.zeros((*mask.shape, len(genes)), dtype=np.float32)
    resolved[row, column] = table.X
    columns = section["truth"].var_names.get_indexer(genes)
    measured, truth = (half[:, columns].toarray().reshape(*grid.shape, -1) for half in (seen, scored))
    maps = {"bins of 8 µm": measured} | {
        f"smoothed, sigma {sigma:g} µm": gaussian_filter(measured, (sigma / 8, sigma / 8, 0)) for sigma in SIGMAS_UM
    }
    scores = {
        name: correlation_by_scale(values, truth, mask, genes=genes, factors=FACTORS, statistics=("pearson",))
        .groupby("scale_um")
        .pearson.mean()
        for name, values in (maps | {"sphistex": resolved}).items()
    }
    print(pd.DataFrame(scores).T.round(3).to_string())
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def on_grid(section: SpatialData) -> tuple[Grid, sparse.csr_matrix]:
    """The grid of superpixels, and the truth on it (n_superpixels, n_genes)."""
    truth, grid = section["truth"], resolve_section(section).grid
    return grid, sparse.csr_matrix(superpixels_of(truth.obsm["spatial"], grid.pitch_px, grid.shape) @ truth.X)


def as_visium_hd(section: SpatialData, grid: Grid, counts: sparse.csr_matrix, bin_um: int) -> SpatialData:
    """The section as spatialdata-io reads Visium HD, with square bins of a multiple of 8 µm."""
    times = bin_um // 8
    rows, columns = (index.ravel() // times for index in np.indices(grid.shape))
    width = grid.shape[1] // times
    pool = sparse.csr_matrix((np.ones(grid.size), (rows * width + columns, np.arange(grid.size))))
    sums = sparse.csr_matrix(pool @ counts).astype(np.float32)
    number = np.arange(sums.shape[0])
    y, x = (place * bin_um / grid.mpp for place in np.divmod(number, width))
    side = bin_um / grid.mpp
    name, placed = f"kidney_square_{bin_um:03d}um", {"kidney": Identity()}
    squares = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + side, y + side))
    obs = pd.DataFrame({"region": pd.Categorical([name] * len(number)), "bin": number}, index=number.astype(str))
    table = ad.AnnData(sums, obs=obs, var=pd.DataFrame(index=section["truth"].var_names))
    image = Image2DModel.parse(section["image"].data, dims=("c", "y", "x"), transformations=placed)
    return SpatialData(
        images={"kidney_full_image": image},
        shapes={name: ShapesModel.parse(squares, transformations=placed)},
        tables={
            f"square_{bin_um:03d}um": TableModel.parse(table, region=name, region_key="region", instance_key="bin")
        },
    )


if __name__ == "__main__":
    main()
