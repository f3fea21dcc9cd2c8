"""Regions of super-resolved expression beside those of interpolated spots, where the truth is known.

    python benchmarks/annotation.py simulated --seeds 2 3 4 5
    python benchmarks/annotation.py kidney --pictures pictures/

At the number of clusters that is chosen for each map, and at some fixed ones. Simulated: adjusted Rand index against
the true compartments. Kidney: glomeruli and segments of tubules, which are where the true share of their marker genes,
smoothed by a Gaussian of 32 µm, is above Otsu's threshold; precision and recall of the class with the highest true
share of them.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from spatialdata import SpatialData

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.bench.datasets import find
from sphistex.metrics.baselines import linear
from sphistex.metrics.lattice import superpixels_of
from sphistex.tl._genes import choose_genes

ENCODER = "efficientnet_lite0"
MAPS = ("interpolated", "superres")
SMOOTH_UM = 32.0
STRUCTURES = {
    "glomeruli": ["NPHS1", "NPHS2", "PODXL"],
    "proximal tubule": ["LRP2", "CUBN", "SLC34A1"],
    "thick ascending limb": ["UMOD", "SLC12A1"],
    "distal tubule": ["SLC12A3", "CALB1"],
    "collecting duct": ["AQP2", "AQP3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["simulated", "kidney"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--size-um", type=float, default=1500)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--clusters", type=int, nargs="+", default=[4, 6, 8, 12])
    parser.add_argument("--smooth-um", type=float, nargs="+", default=[0, 32])
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    if arguments.section == "simulated":
        print(pd.concat([simulated(seed, arguments) for seed in arguments.seeds]).to_string(index=False))
    else:
        kidney(arguments)


def simulated(seed: int, arguments: argparse.Namespace) -> pd.DataFrame:
    sdata = sx.datasets.simulate(size_um=arguments.size_um, seed=seed)
    sx.tl.super_resolve(sdata, encoder=ENCODER)
    add_interpolated(sdata)
    truth = sdata.tables["truth"]
    compartment = pd.Series(truth.obs["compartment"].to_numpy(), index=map(tuple, truth.obsm["spatial"]))
    true = compartment.reindex(map(tuple, sdata.tables["superres"].obsm["spatial"])).to_numpy()
    rows = []
    for smooth_um in arguments.smooth_um:
        for n in (None, *arguments.clusters):
            row: dict[str, object] = {"seed": seed, "smooth_um": smooth_um, "n_clusters": n or "chosen"}
            for name in MAPS:
                sx.tl.annotate(sdata, table_key=name, n_clusters=n, smooth_um=smooth_um)
                row[name] = round(sx.metrics.agreement(regions(sdata, name), true).adjusted_rand_index, 3)
                row[f"{name}_n"] = n_used(sdata, name)
            rows.append(row)
    if arguments.pictures and seed == arguments.seeds[0]:
        for name in MAPS:
            sx.tl.annotate(sdata, table_key=name)
        sdata.tables["superres"].obs["truth"] = pd.Categorical(true)
        sdata.tables["superres"].obs["interpolated"] = regions(sdata, "interpolated")
        columns = ["truth", "annotation", "interpolated"]
        sx.pl.annotation(sdata, columns, save=arguments.pictures / "simulated.png")
    return pd.DataFrame(rows)


def kidney(arguments: argparse.Namespace) -> None:
    sdata = find("kidney", None).read()
    markers = [gene for genes in STRUCTURES.values() for gene in genes if gene in sdata["counts"].var_names]
    genes = list(dict.fromkeys([*markers, *choose_genes(sdata["counts"], arguments.genes)]))
    started = time.process_time()
    sx.tl.super_resolve(sdata, genes=genes, encoder=ENCODER)
    print(f"{len(genes)} genes with {markers}; features, fit and prediction {time.process_time() - started:.0f} CPU s")
    add_interpolated(sdata)
    true = structures(sdata, genes=set(markers))
    outside = ~sdata.tables["superres"].obs["in_spot"].to_numpy()
    rows = []
    for smooth_um in arguments.smooth_um:
        for n in (None, *arguments.clusters):
            for name in MAPS:
                sx.tl.annotate(sdata, table_key=name, n_clusters=n, smooth_um=smooth_um)
                at = {"smooth_um": smooth_um, "n_clusters": f"{n or 'chosen':>6}", "map": name}
                rows += [row | at for row in found_structures(regions(sdata, name), true, outside)]
                print(at | {"used": n_used(sdata, name), "cpu_s": round(time.process_time() - started)}, flush=True)
    scores = pd.DataFrame(rows)
    index = ["structure", "where", "smooth_um", "n_clusters"]
    wide = scores.pivot_table(index=index, columns="map", values=["precision", "recall", "f1"])
    print(wide.round(2).to_string(), flush=True)
    table = sdata.tables["superres"]
    for structure, (_, inside) in true.items():
        print(f"{structure}: {inside.mean():.1%} of the tissue")
        table.obs[structure] = pd.Categorical(np.where(inside, structure, None))
    if arguments.pictures:
        for smooth_um in arguments.smooth_um:
            for name in MAPS:
                sx.tl.annotate(sdata, table_key=name, smooth_um=smooth_um)
            table.obs["interpolated"] = regions(sdata, "interpolated")
            file = arguments.pictures / f"kidney_{smooth_um:g}um.png"
            sx.pl.annotation(sdata, ["annotation", "interpolated"], save=file)
        sx.pl.annotation(sdata, list(true), save=arguments.pictures / "kidney_truth.png")


def found_structures(
    found: NDArray, true: dict[str, tuple[NDArray, NDArray]], outside: NDArray[np.bool_]
) -> list[dict[str, object]]:
    """How much of each structure, everywhere and outside of the spots, the region has that is richest in it."""
    rows: list[dict[str, object]] = []
    for structure, (share, inside) in true.items():
        top = found == pd.Series(share).groupby(found, observed=True).mean().idxmax()
        for where, places in (("all", np.ones(len(top), bool)), ("between spots", outside)):
            both, n_top, n_inside = ((one & places).sum() for one in (top & inside, top, inside))
            rows.append(
                {
                    "structure": structure,
                    "where": where,
                    "precision": both / max(1, n_top),
                    "recall": both / max(1, n_inside),
                    "f1": 2 * both / max(1, n_top + n_inside),
                }
            )
    return rows


def regions(sdata: SpatialData, name: str) -> NDArray:
    return sdata.tables[name].obs["annotation"].to_numpy()


def n_used(sdata: SpatialData, name: str) -> int:
    return sdata.tables[name].uns["annotation"]["params"]["n_clusters"]


def add_interpolated(sdata: SpatialData) -> None:
    """The spots' counts, interpolated linearly, as a result beside that of the model."""
    result = sdata.tables["superres"]
    made = result.uns["superres"]
    section = resolve_section(sdata, mpp=made["mpp"], **made["section"])
    counts = section.table[:, list(result.var_names)].X
    counts = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts)
    density = counts / np.asarray(section.bags.weights.sum(1)).reshape(-1, 1)
    table = result.copy()
    table.X = linear(section.xy_px, density, result.obsm["spatial"]).astype(np.float32)
    table.uns["interpolated"] = table.uns.pop("superres")
    sdata.tables["interpolated"] = table


def structures(sdata: SpatialData, genes: set[str]) -> dict[str, tuple[NDArray, NDArray]]:
    """Smoothed true share of each structure's genes in each superpixel of the result, and where it is high."""
    truth, grid = sdata.tables["truth"], resolve_section(sdata).grid
    pool = superpixels_of(np.asarray(truth.obsm["spatial"]), grid.pitch_px, grid.shape)
    column, row = np.floor(sdata.tables["superres"].obsm["spatial"] / grid.pitch_px).astype(int).T
    total = smoothed_sum(truth, pool, grid.shape)
    found = {}
    for name, members in STRUCTURES.items():
        there = [gene for gene in members if gene in genes]
        if there:
            share = (smoothed_sum(truth[:, there], pool, grid.shape) / np.maximum(total, 1e-6))[row, column]
            found[name] = share, share > threshold_otsu(share)
    return found


def smoothed_sum(table: AnnData, pool: NDArray, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Counts of all genes of a table on the grid (rows, columns), smoothed."""
    sums = np.asarray(table.X.sum(1)).ravel()
    return gaussian_filter((pool @ sums).reshape(shape).astype(float), SMOOTH_UM / sx.grid.SUPERPIXEL_UM)


if __name__ == "__main__":
    main()
