"""From image and spots to the table, on a real section: time and memory of each step, and the accuracy.

    python benchmarks/end_to_end.py kidney --genes 1000 --models 5

The section is one that ``sphistex bench`` knows. Spots are those of its published protocol (a): they share their
counts with the truth. The steps run in a process of their own, from a store on disk that holds no truth, as a user's
would; the store is made before it, and scored after it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from anndata import AnnData

import sphistex as sx

ENCODER = "efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", default="kidney")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--out", type=Path, help="store to write, which is kept")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    if arguments.alone:
        print(json.dumps(steps(arguments.alone, arguments.genes, arguments.models)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.out or Path(folder) / "section.zarr"
        truth = prepare(arguments.section, store)
        numbers = ["--genes", str(arguments.genes), "--models", str(arguments.models)]
        command = [sys.executable, __file__, *numbers, "--alone", str(store)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1]) | score(store, truth)
    print(json.dumps(found, indent=1))


def prepare(section: str, store: Path) -> AnnData:
    """Write image and spots of a section; returns its truth."""
    from sphistex.bench.datasets import find

    sdata = find(section, None).read()
    truth = sdata.tables.pop("truth")
    sdata.labels.pop("truth_labels", None)
    sdata.write(store, overwrite=True)
    return truth


def steps(store: Path, n_genes: int, n_models: int) -> dict[str, float]:
    """Features, then all the rest, from a store; seconds, and the peak of resident memory after each."""
    import spatialdata

    sdata = spatialdata.read_zarr(store)
    found = {"opened_gib": peak_gib()}
    started = time.perf_counter()
    sx.tl.superpixel_features(sdata, encoder=ENCODER)
    found |= {"features_s": round(time.perf_counter() - started, 1), "features_gib": peak_gib()}
    model = sx.tl.super_resolve(sdata, genes=n_genes, n_models=n_models, encoder=ENCODER)
    seconds = round(time.perf_counter() - started, 1)
    return found | {"all_s": seconds, "of_it_fit_s": model.info["seconds"], "all_gib": peak_gib()}


def score(store: Path, truth: AnnData) -> dict[str, float]:
    """Mean r over genes at 16 µm."""
    import spatialdata

    result = spatialdata.read_zarr(store, selection=("tables",)).tables["superres"]
    predicted, true, mask, genes = sx.metrics.from_tables(result, truth)
    table = sx.metrics.correlation_by_scale(predicted, true, mask, genes=genes, factors=(2,), statistics=("pearson",))
    return {"r_16um": round(float(table["pearson"].mean()), 4)}


def peak_gib() -> float:
    """Largest resident memory so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    main()
