"""Do intervals hold as often as they say, and are as few calls false as they say?

    python benchmarks/certainty.py kidney pancreas simulated:0 simulated:1

Of a crop with a truth (protocol c: spots from one half of the counts, intervals scored against the other) the share
of 90 % intervals of counts that hold, by scale and by decile of what is expected. Of simulated sections, whose
expression is known, also intervals of the expression, and the share of calls at a false discovery rate of 10 % that
are false; these are described by the public functions alone.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

import sphistex as sx
from sphistex import encoders, metrics
from sphistex.bench.datasets import find
from sphistex.bench.trials import make_trials
from sphistex.metrics.lattice import coarsening, superpixels_of
from sphistex.nn import SuperResolver, parameters

ENCODER, LEVEL, FDR, FACTORS = "efficientnet_lite0", 0.9, 0.1, (1, 2, 4, 8)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    rows = []
    for name in arguments.sections:
        for row in of_simulated(int(name.partition(":")[2] or 0)) if name.startswith("simulated") else of_crop(name):
            rows.append({"section": name, **row})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


def of_crop(name: str) -> Iterator[Row]:
    source = find(name, None)
    (trial,) = make_trials(
        source.read(), protocols="c", genes=source.genes, encoder=encoders.get(ENCODER), seed=0, device="cpu"
    )
    problem, truth = trial.problem, trial.areas[0].truth.toarray()
    model = SuperResolver.fit(problem.features, problem.bags, problem.spots, problem.genes, parameters())
    assert model.calibration is not None
    predicted = model.predict_tissue(problem.features, problem.bags, problem.spots)
    for factor in FACTORS:
        squares = coarsening(problem.mask, factor)
        expected, measured, area = squares @ predicted, squares @ truth, np.asarray(squares.sum(1)).ravel()
        lower, upper = model.calibration.count_interval(expected, area, LEVEL)
        yield _judged(factor, lower, upper, measured, expected)


def of_simulated(seed: int) -> Iterator[Row]:
    sdata = sx.datasets.simulate(size_um=2000.0, n_genes=200, seed=seed)
    sx.tl.super_resolve(sdata, genes=200, encoder=ENCODER)
    result, truth = sdata.tables["superres"], sdata.tables["truth"]
    (mask, measured), (_, expression) = (_on_lattice(result, truth, layer) for layer in (None, "expected"))
    for factor in FACTORS:
        counts = sx.tl.confidence(sdata, scale_um=8.0 * factor, fdr=FDR)
        rates = sx.tl.confidence(sdata, scale_um=8.0 * factor, of="expression")
        squares = coarsening(mask, factor)
        seen, behind = squares @ measured, squares @ expression
        row = _judged(factor, counts.layers["lower"], counts.layers["upper"], seen, counts.X)
        held = metrics.coverage(rates.layers["lower"], rates.layers["upper"], behind, rates.X).coverage[0]
        threshold = counts.obs["n_superpixels"].to_numpy()[:, None] * result.var["mean_count"].to_numpy()
        called = counts.layers["called"]
        false = (behind <= threshold) & called
        some = called.any(0)
        yield row | {
            "coverage_of_expression": round(float(held), 4),
            "false_calls": round(float(false.sum() / called.sum()), 4),
            "false_calls_mean_over_genes": round(float((false.sum(0)[some] / called.sum(0)[some]).mean()), 4),
        }


def _on_lattice(result: AnnData, truth: AnnData, layer: str | None) -> tuple[NDArray[np.bool_], NDArray]:
    """The result's superpixels (rows, columns), and the truth there (n_superpixels, n_genes), row by row."""
    place = result.obs[["array_row", "array_col"]].to_numpy()
    shape = tuple(int(size) for size in place.max(0) + 1)
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(place.T)] = True
    made = result.uns["superres"]
    pitch_px = made["pitch_um"] / made["mpp"]
    xy_px = truth.obsm["spatial"] - np.asarray(made["crop"])[::-1] * pitch_px
    inside = ((xy_px >= 0) & (xy_px < np.array(shape)[::-1] * pitch_px)).all(1)
    values = truth[inside, result.var_names].X if layer is None else truth[inside, result.var_names].layers[layer]
    # where the truth has no superpixel there is no tissue, and nothing is expressed
    return mask, (superpixels_of(xy_px[inside], pitch_px, shape)[mask.ravel()] @ sparse.csr_matrix(values)).toarray()


def _judged(factor: int, lower: NDArray, upper: NDArray, measured: NDArray, expected: NDArray) -> Row:
    table = metrics.coverage(lower, upper, measured, expected)
    return {
        "scale_um": 8 * factor,
        "r": round(float(np.nanmean(metrics.pearson(expected, measured))), 4),
        "coverage": round(float(table.coverage[0]), 4),
        "by_decile": table.coverage[1:].round(3).tolist(),
    }


if __name__ == "__main__":
    main()
