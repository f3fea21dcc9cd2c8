"""From image and spots to the table, on a real section: time and memory of each step, and the accuracy.

    python benchmarks/end_to_end.py kidney --genes 1000 --models 5

The section is one that ``sphistex bench`` knows. Spots are those of its published protocol (a): they share their
counts with the truth.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from pathlib import Path

import sphistex as sx
from sphistex.bench.datasets import find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", default="kidney")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--out", type=Path, help="store to write")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    sdata = find(arguments.section, None).read()
    found: dict[str, float] = {"read_gib": peak_gib()}
    steps = {
        "features": lambda: sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0"),
        "super_resolve": lambda: sx.tl.super_resolve(
            sdata, genes=arguments.genes, n_models=arguments.models, encoder="efficientnet_lite0", table_key="counts"
        ),
    }
    for name, step in steps.items():
        started = time.perf_counter()
        result = step()
        found[f"{name}_s"] = round(time.perf_counter() - started, 1)
        found[f"{name}_gib"] = peak_gib()
    found["of_it_fit_s"] = result.info["seconds"]
    predicted, truth, mask, genes = sx.metrics.from_tables(sdata.tables["superres"], sdata.tables["truth"])
    table = sx.metrics.correlation_by_scale(predicted, truth, mask, genes=genes, factors=(2,), statistics=("pearson",))
    found["r_16um"] = float(table["pearson"].mean())
    print(json.dumps(found, indent=1))
    if arguments.out:
        sdata.write(arguments.out)


def peak_gib() -> float:
    """Largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
