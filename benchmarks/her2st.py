"""A legacy ST section from its files to a store and pictures, and its accuracy at spots that were held out.

    python benchmarks/her2st.py C3 --out benchmark-output

Without a truth at high resolution, every fourth spot is held out: the map fitted to the others is summed over the
held-out spots' disks and correlated with what they measured, per gene.
"""

from __future__ import annotations

import argparse
import logging
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from crops import DATA

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.metrics import baselines, pearson
from sphistex.tl._genes import choose_genes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", default="C3")
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmark-output"))
    parser.add_argument("--fit", default="", help="changes to the fit parameters, such as 'layers=0,n_models=1'")
    arguments = parser.parse_args()
    logging.getLogger("sphistex").addHandler(logging.StreamHandler())
    logging.getLogger("sphistex").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*autosharding.*")
    arguments.out.mkdir(parents=True, exist_ok=True)
    changes = eval(f"dict({arguments.fit})")

    started = time.perf_counter()
    store, genes = whole_section(arguments.section, arguments.genes, arguments.out, changes)
    print(f"files to store: {time.perf_counter() - started:.0f} s")
    started = time.perf_counter()
    held_out_spots(store, genes, changes)
    print(f"held-out fit: {time.perf_counter() - started:.0f} s")
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def whole_section(name: str, n_genes: int, out: Path, changes: dict) -> tuple[Path, list[str]]:
    """From the files to a store with features and grid table, and pictures."""
    from spatialdata import read_zarr

    folder = DATA / "her2st"
    sdata = sx.io.read_st(folder / f"{name}.tsv.gz", folder / f"{name}.jpg", folder / f"{name}_selection.tsv")
    store = out / f"her2st_{name}.zarr"
    sdata.write(store, overwrite=True)
    sdata = read_zarr(store)
    genes = choose_genes(sdata.tables["counts"], n_genes)
    sx.tl.super_resolve(sdata, genes=genes, encoder="efficientnet_lite0", **changes)
    shown = [gene for gene in ("ERBB2", "IGKC", "COL1A1", "KRT19", "FASN") if gene in genes]
    sx.pl.features(sdata, save=out / f"her2st_{name}_features.png")
    sx.pl.expression(sdata, shown or genes[:3], save=out / f"her2st_{name}_expression.png")
    sx.pl.training(sdata, save=out / f"her2st_{name}_training.png")
    return store, genes


def held_out_spots(store: Path, genes: list[str], changes: dict) -> None:
    """Pearson r per gene over every fourth spot, for a model and interpolations that have not seen them."""
    from spatialdata import read_zarr

    stored = read_zarr(store)
    whole = resolve_section(stored)
    test = np.arange(len(whole.xy_px)) % 4 == 0
    sdata = sx.io.from_spots(
        whole.image.data,
        whole.table[~test].copy(),
        whole.xy_px[~test],
        spot_diameter_um=100.0,
        spot_pitch_um=200.0,
    )
    # image, mask and features have not seen any spot's counts
    for key in ("tissue", "superpixel_features"):
        kind = "labels" if key == "tissue" else "images"
        getattr(sdata, kind)[key] = getattr(stored, kind)[key]
    sdata.attrs = stored.attrs | sdata.attrs | {"sphistex": stored.attrs["sphistex"] | sdata.attrs["sphistex"]}
    model = sx.tl.fit(sdata, genes=genes, mpp=whole.mpp, **changes)
    sx.tl.predict(sdata, model, mpp=whole.mpp)

    table = sdata.tables["superres"]
    rates = np.zeros((*whole.grid.shape, len(genes)), dtype=np.float32)
    rates[
        tuple(np.array(table.uns["superres"]["crop"])[:, None] + table.obs[["array_row", "array_col"]].to_numpy().T)
    ] = table.X
    measured = whole.table[test, genes].X.toarray()
    seen = whole.table[~test, genes].X.toarray()
    places = {
        "nearest spot": baselines.nearest(whole.xy_px[~test], seen, whole.xy_px[test]),
        "linear interpolation": baselines.linear(whole.xy_px[~test], seen, whole.xy_px[test]),
        "sphistex": whole.bags.take(test).weights @ rates.reshape(-1, len(genes)),
    }
    scores = pd.DataFrame({method: pearson(values, measured) for method, values in places.items()}, index=genes)
    print(f"{test.sum()} held-out spots, {len(genes)} genes, mean Pearson r:")
    print(scores.mean().round(3).to_string())
    better = (scores.sphistex > scores["linear interpolation"]).mean()
    print(f"sphistex is better than linear interpolation on {better:.0%} of the genes")


if __name__ == "__main__":
    main()
