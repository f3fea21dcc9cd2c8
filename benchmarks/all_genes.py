"""All genes of a real section: memory and time of each step, and whether lazily read genes are the dense ones.

    python benchmarks/all_genes.py kidney

The section is one that ``sphistex bench`` knows. Its result is lazy: one gene is read from it, and compared with a
dense prediction of a few genes by the same model.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from typing import Any

import numpy as np
from spatialdata import SpatialData

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.bench.datasets import find
from sphistex.nn.prediction import Mapper
from sphistex.nn.resolver import SuperResolver
from sphistex.tl._inputs import gather_inputs

_COMPARED = 5
_MAPPED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", default="kidney")
    parser.add_argument("--epochs", type=int, help="fewer are quicker; memory is the same")
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, default=sx.settings.memory_gb)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress, sx.settings.memory_gb = False, arguments.memory_gb
    found: dict[str, Any] = {"section": arguments.section, "memory_gb": arguments.memory_gb}
    changes = {"n_models": arguments.models, "precision": arguments.precision}
    if arguments.epochs is not None:
        changes["epochs"] = arguments.epochs

    sdata = find(arguments.section, None).read()
    note(found, "read", time.perf_counter())
    started = time.perf_counter()
    sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0")
    note(found, "features", started)
    started = time.perf_counter()
    model = sx.tl.fit(sdata, genes="all", table_key="counts", **changes)
    note(found, "fit", started)
    started = time.perf_counter()
    sx.tl.predict(sdata, model, table_key="counts", lazy=True)
    note(found, "predict", started)
    table = sdata.tables["superres"]
    found |= {"genes": table.n_vars, "superpixels": table.n_obs, "latent": list(sdata.images["superres_latent"].shape)}

    for name, genes in (
        ("first", table.var_names[:1]),
        ("one", table.var_names[1:2]),
        ("map", table.var_names[:_MAPPED]),
    ):
        started = time.perf_counter()
        table[:, genes].X.compute()
        note(found, f"{name}_gene" if len(genes) == 1 else f"{len(genes)}_genes", started)

    chosen = np.linspace(0, table.n_vars - 1, _COMPARED).astype(int)
    lazy = table[:, chosen].X.compute()
    dense = predicted(sdata, model, chosen)
    found["pearson_of_lazy_and_dense"] = [float(np.corrcoef(lazy[:, i], dense[:, i])[0, 1]) for i in range(_COMPARED)]
    found["largest_difference_in_means"] = float((np.abs(lazy - dense).max(0) / dense.mean(0)).max())
    print(json.dumps(found, indent=1))


def predicted(sdata: SpatialData, model: SuperResolver, genes: np.ndarray) -> np.ndarray:
    """Counts of some genes (n_superpixels, n_genes) as a dense prediction has them."""
    section = resolve_section(sdata, table_key="counts")
    inputs = gather_inputs(
        sdata,
        section,
        model.genes,
        features_key="superpixel_features",
        tissue_key="tissue",
        context=model.parameters.context,
    )
    mapper = Mapper.of(model, inputs.features, inputs.bags, inputs.spots, seed=int(model.info["seed"]))
    reader = mapper.reader.take(genes)
    out = np.empty((int(inputs.features.mask.sum()), len(genes)), dtype=np.float32)
    for window in inputs.features.blocks():
        inside = inputs.features.mask[window]
        out[inputs.features.places(window)] = reader.counts(window, inside, mapper.latent(window))
    return out


def note(found: dict[str, Any], step: str, started: float) -> None:
    """Seconds that a step took, and the largest resident memory so far."""
    found[f"{step}_s"] = round(time.perf_counter() - started, 2)
    found[f"{step}_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    main()
