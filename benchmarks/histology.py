"""How well expression is predicted from the image alone: real sections left out in turn, and simulated ones.

    python benchmarks/histology.py her2st
    python benchmarks/histology.py simulated --sections 6

her2st leaves out each of the sections C2 to C5, with the built-in encoder and the 200 most variable genes. Simulated
sections have regions that look different, and, as a check, the same region labels shuffled; each correlation stands
beside its ceiling, that of the expectation with the counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import sphistex as sx

DATA = Path(os.environ.get("SPHISTEX_DATA", Path(__file__).parents[2] / "shared" / "data"))
ENCODER = "efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["her2st", "simulated"])
    parser.add_argument("--sections", type=int, default=6, help="simulated ones")
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--stain-versions", type=int, default=0, help="of the features, to learn from")
    parser.add_argument("--out", type=Path, help="CSV of all scores")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    if arguments.what == "her2st":
        scores = her2st(arguments.genes, arguments.stain_versions)
    else:
        scores = simulated(arguments.sections, arguments.genes, arguments.stain_versions)
    if arguments.out:
        scores.expression.to_csv(arguments.out, index=False)
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def her2st(n_genes: int, versions: int) -> Any:
    sections = []
    for name in ("C2", "C3", "C4", "C5"):
        parts = (DATA / "her2st" / f"{name}{suffix}" for suffix in (".tsv.gz", ".jpg", "_selection.tsv"))
        sections.append(sx.io.read_st(*parts))
        started = time.perf_counter()
        sx.tl.lattice_features(sections[-1], encoder=ENCODER, stain_versions=versions)
        positions = sections[-1].tables["lattice_features"].n_obs
        print(f"{name}: {positions} positions, features in {time.perf_counter() - started:.0f} s", flush=True)
    return cross_validated(sections, genes=n_genes)


def simulated(n_sections: int, n_genes: int, versions: int) -> Any:
    sections = [sx.datasets.simulate(size_um=1500, n_genes=n_genes, seed=seed) for seed in range(n_sections)]
    rng = np.random.default_rng(0)
    ceilings = []
    for sdata in sections:
        counts = sdata.tables["counts"]
        counts.obs["compartment"] = of_spots(sdata)
        counts.obs["shuffled"] = rng.permutation(counts.obs["compartment"])
        ceilings.append(ceiling(sdata))
        sx.tl.lattice_features(sdata, encoder=ENCODER, stain_versions=versions)
    print(f"ceiling of r: {np.mean(ceilings):.3f}")
    print("shuffled regions:")
    cross_validated(sections, genes=n_genes, regions_key="shuffled")
    print("regions:")
    return cross_validated(sections, genes=n_genes, regions_key="compartment")


def of_spots(sdata: Any) -> pd.Series:
    """Compartment of the superpixel under the middle of each spot."""
    from scipy.spatial import KDTree

    counts, truth = sdata.tables["counts"], sdata.tables["truth"]
    place = KDTree(truth.obsm["spatial"]).query(counts.obsm["spatial"])[1]
    found = truth.obs["compartment"].astype(str).to_numpy()[place]
    # what is rare cannot be left out and learnt as well
    common = pd.Series(found).value_counts(normalize=True).loc[lambda share: share > 0.05].index
    return pd.Series(found, index=counts.obs_names).where(np.isin(found, common))


def ceiling(sdata: Any) -> float:
    """Mean correlation of log-normalised counts with what they would be without noise, over spots."""
    from sphistex._section import resolve_section

    section, truth = resolve_section(sdata, table_key="counts", shapes_key="spots"), sdata.tables["truth"]
    place = np.asarray(sdata.labels["truth_labels"]).ravel()
    weights = section.bags.weights[:, place > 0]
    expected = weights @ np.asarray(truth.layers["expected"])
    counts = section.table.X
    counts = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts)
    clean, noisy = (np.log1p(1e4 * x / x.sum(1, keepdims=True)) for x in (expected, counts))
    clean, noisy = clean - clean.mean(0), noisy - noisy.mean(0)
    return float(np.nanmean((clean * noisy).sum(0) / np.sqrt((clean**2).sum(0) * (noisy**2).sum(0) + 1e-12)))


def cross_validated(sections: list[Any], **how: Any) -> Any:
    started = time.perf_counter()
    scores = sx.tl.cross_validate_histology(sections, encoder=ENCODER, **how)
    print(scores.summary().round(3).to_string())
    by_section = scores.expression.groupby(["method", "section"], sort=False)["pearson"].mean().unstack()
    print(by_section.round(3).to_string())
    print(f"{time.perf_counter() - started:.0f} s", flush=True)
    return scores


if __name__ == "__main__":
    main()
