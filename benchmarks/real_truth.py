"""Accuracy on real sections with a truth at 8 µm, beside simple methods on the same spots, features and genes.

    python benchmarks/real_truth.py kidney pancreas --out benchmark-output

For each section, protocol (a) makes the spots from the truth they are scored against (the published protocol), and
(c) makes them from one half of the counts and scores against the other; (b) scores (a) and (c) on superpixels outside
every spot. Writes a table, a Markdown report and maps of some genes beside the truth.
"""

from __future__ import annotations

import argparse
import logging
import resource
import time
import warnings
from pathlib import Path

import crops
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from baselines import interpolated, mil_ridge

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.metrics import correlation_by_scale, noise_ceiling
from sphistex.tl._genes import choose_genes
from sphistex.tl._inputs import gather_inputs

FACTORS = (1, 2, 4, 8)
SHOWN = {"kidney": ["NPHS2", "UMOD"], "pancreas": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", nargs="*", default=list(crops.CROPS))
    parser.add_argument("--genes", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("benchmark-output"))
    parser.add_argument("--protocols", default="ac")
    parser.add_argument("--fit", default="", help="changes to the fit parameters, such as 'layers=0,n_models=1'")
    arguments = parser.parse_args()
    logging.getLogger("sphistex").addHandler(logging.StreamHandler())
    logging.getLogger("sphistex").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*autosharding.*")
    arguments.out.mkdir(parents=True, exist_ok=True)
    changes = eval(f"dict({arguments.fit})")
    tables = [
        run(name, protocol, arguments.genes, arguments.out, changes)
        for name in arguments.crops
        for protocol in arguments.protocols
    ]
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(arguments.out / "real_truth.csv", index=False)
    wide = table.groupby(["crop", "protocol", "area", "method", "scale_um"], sort=False).pearson.mean().unstack()
    (arguments.out / "real_truth.md").write_text(wide.round(3).to_markdown() + "\n")
    print(wide.round(3).to_string())
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def run(name: str, protocol: str, n_genes: int, out: Path, changes: dict) -> pd.DataFrame:
    """All methods on one section under one protocol; tidy table of Pearson r per gene."""
    crop, seen, scored = _counts(name, protocol)
    centres_um = crops.hexagonal_spots(crop.grid)
    table = crops.spot_table(crop, seen, centres_um)
    sdata = sx.io.from_spots(crop.image, table, centres_um / crop.grid.mpp, spot_diameter_um=55.0, spot_pitch_um=100.0)
    genes = _genes(crop, name, n_genes, centres_um)

    times = {}
    started = time.perf_counter()
    sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0", mpp=crop.grid.mpp)
    times["features"] = time.perf_counter() - started
    started = time.perf_counter()
    model = sx.tl.super_resolve(sdata, genes=genes, encoder="efficientnet_lite0", mpp=crop.grid.mpp, **changes)
    times["fit and predict"] = time.perf_counter() - started
    times["fit"] = model.info["seconds"]
    print(name, protocol, {key: f"{value:.0f} s" for key, value in times.items()}, flush=True)

    section = resolve_section(sdata, mpp=crop.grid.mpp)
    inputs = gather_inputs(
        sdata,
        section,
        genes,
        features_key="superpixel_features",
        tissue_key="tissue",
        context=model.parameters.context,
    )
    mask = inputs.features.mask
    ridge, ridge_residuals = mil_ridge(inputs.features, inputs.bags, inputs.spots)
    maps = {
        "nearest spot": interpolated("nearest", inputs.spots, inputs.bags, mask),
        "linear interpolation": interpolated("linear", inputs.spots, inputs.bags, mask),
        "MIL ridge": ridge,
        "MIL ridge + residuals, smoothed": ridge_residuals,
        "sphistex": _result(sdata, mask, len(genes)),
    }
    truth = crop.dense(pd.Index(genes), scored)
    whole = crop.dense(pd.Index(genes))
    off_spot = mask & (np.asarray(inputs.bags.weights.sum(0)).reshape(mask.shape) == 0)
    rows = []
    for method, values in maps.items():
        rows.append(
            correlation_by_scale(values, truth, mask, genes=genes, factors=FACTORS, statistics=("pearson",)).assign(
                area="tissue", method=method
            )
        )
        rows.append(
            correlation_by_scale(
                values, truth, off_spot, genes=genes, factors=(1, 2), min_share=1.0, statistics=("pearson",)
            ).assign(area="off-spot", method=method)
        )
        rows.append(
            correlation_by_scale(
                values, truth, np.ones_like(mask), genes=genes, factors=FACTORS, statistics=("pearson",)
            ).assign(area="all bins", method=method)
        )
    ceiling = noise_ceiling(whole, mask, independent_half=protocol == "c", genes=genes, factors=FACTORS)
    rows.append(ceiling.rename(columns={"ceiling": "pearson"}).assign(area="tissue", method="noise ceiling"))
    if protocol == "a":
        _draw(name, maps, whole, mask, genes, out)
    return pd.concat(rows).assign(crop=name, protocol=protocol)


def _counts(name: str, protocol: str) -> tuple[crops.Crop, object, object]:
    """The crop, the counts that the spots are made from, and those they are scored against."""
    crop = crops.load(name)
    if protocol == "a":
        return crop, crop.counts, crop.counts
    return crop, *crops.halves(crop)


def _genes(crop: crops.Crop, name: str, n_genes: int, centres_um: np.ndarray) -> list[str]:
    """The most variable genes of the full-depth spots, so that all protocols score the same ones."""
    table = crops.spot_table(crop, crop.counts, centres_um)
    chosen = choose_genes(table, n_genes)
    return chosen + [gene for gene in SHOWN[name] if gene not in chosen]


def _result(sdata: object, mask: np.ndarray, n_genes: int) -> np.ndarray:
    table = sdata.tables["superres"]
    row, column = np.array(table.uns["superres"]["crop"])[:, None] + table.obs[["array_row", "array_col"]].to_numpy().T
    out = np.zeros((*mask.shape, n_genes), dtype=np.float32)
    out[row, column] = table.X
    return out


def _draw(name: str, maps: dict, truth: np.ndarray, mask: np.ndarray, genes: list[str], out: Path) -> None:
    """Maps of five genes beside the truth, summed over 16 µm."""
    shown = SHOWN[name] + [gene for gene in _most_structured(truth, mask, genes) if gene not in SHOWN[name]]
    columns = {"truth (16 µm sums)": truth} | {key: maps[key] for key in list(maps)[1:]}
    figure, axes = plt.subplots(5, len(columns), figsize=(3.2 * len(columns), 15), constrained_layout=True)
    for line, gene in zip(axes, shown[:5], strict=True):
        picture = {key: _sum2(values[..., genes.index(gene)]) for key, values in columns.items()}
        for axis, (title, values) in zip(line, picture.items(), strict=True):
            axis.imshow(values, vmin=0, vmax=np.percentile(values, 99.5), cmap="viridis")
            axis.set_title(f"{gene}: {title}", fontsize=8)
            axis.set_axis_off()
    figure.savefig(out / f"{name}_maps.png", dpi=90)
    plt.close(figure)


def _most_structured(truth: np.ndarray, mask: np.ndarray, genes: list[str]) -> list[str]:
    table = noise_ceiling(truth, mask, genes=genes, factors=(4,))
    return list(table.sort_values("ceiling", ascending=False).gene)


def _sum2(values: np.ndarray) -> np.ndarray:
    rows, columns = (size // 2 for size in values.shape)
    return values[: rows * 2, : columns * 2].reshape(rows, 2, columns, 2).sum((1, 3))


if __name__ == "__main__":
    main()
