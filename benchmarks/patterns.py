"""Patterns that are finer than the spots: found where the image shows them, and nowhere else?

    python benchmarks/patterns.py simulated --seeds 0 1 2
    python benchmarks/patterns.py kidney --pictures pictures/

Each section is looked at as it is; with its image shuffled in tiles of 64 µm, so that it says nothing; and, where it is
simulated, with every second gene turned by 180° in spots and truth, so that the image says nothing about those. Of the
genes, those are right whose map, less its smoothing at the distance between spots, correlates with the truth, less its
smoothing, in bins of 16 µm; on the kidney the truth is noisy counts.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.stats import spearmanr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.bench.datasets import find
from sphistex.tl._bins import bins_of, measured_places
from sphistex.tl._genes import choose_genes
from sphistex.tl._pattern_statistics import below
from sphistex.tl.spatial_patterns import _FINE_BIN_UM, _logged, _totals

ENCODER = "efficientnet_lite0"
TILE_UM = 64
# Of the kidney's nephron, from the glomerulus to the collecting duct.
MARKERS = ["NPHS1", "NPHS2", "PODXL", "LRP2", "CUBN", "SLC34A1", "UMOD", "SLC12A1", "SLC12A3", "CALB1", "AQP2", "AQP3"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["simulated", "kidney"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size-um", type=float, default=1500)
    parser.add_argument("--genes", type=int, default=100, help="simulated, or beside the kidney's markers")
    parser.add_argument("--images", nargs="+", default=["as it is", "in tiles", "half turned"])
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    for seed in arguments.seeds if arguments.section == "simulated" else [0]:
        for image in arguments.images:
            if arguments.section == "simulated":
                sdata = sx.datasets.simulate(size_um=arguments.size_um, n_genes=arguments.genes, seed=seed)
                genes = list(sdata["counts"].var_names)
            elif image != "half turned":
                sdata = find("kidney", None).read()
                there = [gene for gene in MARKERS if gene in sdata["counts"].var_names]
                genes = list(dict.fromkeys([*there, *choose_genes(sdata["counts"], arguments.genes)]))
            else:
                continue
            if image == "in tiles":
                shuffle_tiles(sdata, seed)
            elif image == "half turned":
                turn_half(sdata, seed)
            look_at(sdata, genes, f"{arguments.section} {seed}, image {image}", arguments)


def look_at(sdata: SpatialData, genes: list[str], title: str, arguments: argparse.Namespace) -> None:
    started = time.process_time()
    sx.tl.super_resolve(sdata, genes=genes, encoder=ENCODER, seed=0)
    fitted = time.process_time()
    table = sx.tl.spatial_patterns(sdata, genes=genes, seed=1)
    print(f"\n{title}: {len(genes)} genes; CPU seconds {fitted - started:.0f}", end=" ")
    print(f"for the result, {time.process_time() - fitted:.0f} for its patterns")
    print(table.groupby("statistic", sort=False)[["before", "after", "null"]].median().round(3).to_string())
    fine = table[table["statistic"] == "fine"].set_index("gene")
    ratio, r = fine["after"] / fine["null"], pd.Series(fine_r(sdata, genes), index=genes)
    at = ratio.quantile([0.05, 0.5, 0.95, 1]).round(2).tolist()
    print(f"fine, after / null: 5 %, median, 95 %, highest {at}; {fine['beyond'].sum()} of {len(fine)} beyond")
    print(f"r with the truth: beyond {middle(r[fine['beyond']])}, others {middle(r[~fine['beyond']])}", end="; ")
    print(f"rank correlation of after / null with r {spearmanr(ratio, r).statistic:.2f}")
    if "half turned" in title:
        beyond = fine["beyond"].to_numpy()
        print(f"beyond of genes as they are {beyond[::2].mean():.2f}, of turned ones {beyond[1::2].mean():.2f}")
    if arguments.section == "kidney":
        print(fine.assign(ratio=ratio, r=r).reindex([g for g in MARKERS if g in fine.index]).round(3).to_string())
    if arguments.pictures:
        sx.pl.patterns(table, save=arguments.pictures / f"patterns {title}.png")


def middle(r: pd.Series) -> str:
    return " / ".join(f"{value:.2f}" for value in r.quantile([0.05, 0.5, 0.95])) if len(r) else "(none)"


def fine_r(sdata: SpatialData, genes: list[str]) -> NDArray[np.float64]:
    """Correlation with the truth of what is finer than the spots, for each gene."""
    result, truth = sdata.tables["superres"], sdata.tables["truth"].copy()
    truth.X = truth.layers.get("expected", truth.X)
    section, made = resolve_section(sdata, mpp=result.uns["superres"]["mpp"]), result.uns["superres"]
    bins, factor = bins_of(result, made["pitch_um"], _FINE_BIN_UM)
    xy = np.asarray(truth.obsm["spatial"])
    true = replace(section, xy_px=xy, outlines_px=np.empty(len(xy), dtype=object), table=truth)
    true_bins = measured_places(sdata, made, true, bins, factor)
    width = section.pitch_um / _FINE_BIN_UM
    pairs = [
        below(bins, _logged(table, places, genes, _totals(table, genes)), width)
        for table, places in ((result, bins), (truth, true_bins))
    ]
    return np.array([np.corrcoef(*pair)[0, 1] for pair in zip(*(one.T for one in pairs), strict=True)])


def shuffle_tiles(sdata: SpatialData, seed: int) -> None:
    """Deal the tiles of the image that are tissue for the most part out anew."""
    element = sdata.images["image"]
    image = np.asarray(element.data)
    side = round(TILE_UM / resolve_section(sdata).mpp)
    rows, columns = (n // side for n in image.shape[1:])
    tiles = image[:, : rows * side, : columns * side].reshape(3, rows, side, columns, side).transpose(1, 3, 0, 2, 4)
    # slide is bright in all colours
    tissue = np.argwhere(tiles.min(2).mean((2, 3)) < 220)
    tiles[tuple(tissue.T)] = tiles[tuple(np.random.default_rng(seed).permutation(tissue).T)]
    shuffled = image.copy()
    shuffled[:, : rows * side, : columns * side] = tiles.transpose(2, 0, 3, 1, 4).reshape(3, rows * side, -1)
    sdata.images["image"] = Image2DModel.parse(
        shuffled, dims=("c", "y", "x"), transformations=get_transformation(element, get_all=True)
    )


def turn_half(sdata: SpatialData, seed: int) -> None:
    """Turn every second gene of simulated spots and their truth by 180°, onto the nearest tissue."""
    truth, spots, ids = sdata.tables["truth"], sdata.tables["counts"], np.asarray(sdata.labels["truth_labels"])
    nearest = distance_transform_edt(ids == 0, return_distances=False, return_indices=True)
    source = ids[tuple(nearest)][::-1, ::-1][ids > 0] - 1
    turned = np.arange(truth.n_vars) % 2 == 1
    expected = np.asarray(truth.layers["expected"]).copy()
    expected[:, turned] = expected[np.ix_(source, turned)]
    truth.layers["expected"] = expected
    mean = resolve_section(sdata).bags.weights[:, (ids > 0).ravel()] @ expected
    spread, rng = spots.var["dispersion"].to_numpy(), np.random.default_rng(seed)
    counts = spots.X.toarray()
    counts[:, turned] = rng.poisson(mean * rng.gamma(1 / spread, spread, mean.shape))[:, turned]
    spots.X = type(spots.X)(counts)


if __name__ == "__main__":
    main()
