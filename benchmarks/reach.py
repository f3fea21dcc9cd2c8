"""How much sooner sphistex reaches the loss of the published training loop at spots that neither has seen, in one run.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/reach.py kidney --genes 1000 --d 128
    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/reach.py planted

On a real section that ``sphistex bench`` knows, with features of the built-in encoder; or on planted arrays, whose
features are linear in what is to be found. A fifth of the spots is left out. Both are scored by the squared error of
min-max scaled counts there: one model of the published loop along its way, and fits of sphistex with all their models,
longer and longer, until one is as good as the published loop at its best. Seconds are those of CPU time, of all threads
together, so that what else a machine does counts little; on a GPU they are those of the clock.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch
from numpy.typing import NDArray
from sections import Section, as_published, planted, scaled
from speed import fit

import sphistex as sx
from sphistex._section import resolve_section
from sphistex.bench.datasets import find
from sphistex.encoders.base import resolve_device
from sphistex.nn import FeatureMap, FitParameters, parameters
from sphistex.tl._genes import choose_genes
from sphistex.tl._inputs import gather_inputs

# Epochs of a fit that are tried until one reaches the published loop's loss.
TRIED = (1, 2, 4, 8, 15, 25, 40, 80, 160)
# How often the published loop is scored on its way.
SCORED = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", help="planted, or a section that sphistex bench knows")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=500, help="of the published loop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress, sx.settings.device = False, arguments.device
    section = planted(20, 1029, arguments.genes) if arguments.section == "planted" else real(arguments)
    order = np.random.default_rng(0).permutation(len(section.spots.counts))
    held_out, seen = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])
    found = {"section": arguments.section, "spots": len(seen), "features": len(section.features), "d": arguments.d}
    found |= {"threads": torch.get_num_threads()}
    print(json.dumps(found), flush=True)
    found |= compared(section, seen, held_out, arguments.d, arguments.epochs)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))


def real(arguments: argparse.Namespace) -> Section:
    """A section's features and spots, in memory."""
    sdata = find(arguments.section, None).read()
    sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0")
    section = resolve_section(sdata, table_key="counts")
    genes = choose_genes(section.table, arguments.genes)
    how = {"features_key": "superpixel_features", "tissue_key": "tissue", "context": (0,)}
    inputs = gather_inputs(sdata, section, genes, **how)
    return Section(np.asarray(inputs.features.features), inputs.features.mask, inputs.bags, inputs.spots)


def compared(section: Section, seen: NDArray, held_out: NDArray, d: int, epochs: int) -> dict[str, Any]:
    """Losses at the held-out spots against seconds of training, and how much sooner ours is as good as theirs."""
    device = resolve_device(sx.settings.device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    *inputs, target = as_published(section, seen, device=device)
    *unseen, wanted = as_published(section, seen, held_out, device=device)
    published: list[dict[str, float]] = []

    def on_epoch(epoch: int, seconds: float, model: reference.Published) -> None:
        if epoch <= 5 or epoch % max(1, epochs // SCORED) == 0 or epoch == epochs:
            with torch.no_grad():
                loss = torch.nn.functional.mse_loss(model(*unseen), wanted).item()
            published.append({"epochs": epoch, "seconds": seconds, "loss": loss})

    reference.train(*inputs, target, d=d, epochs=epochs, clock=clock, on_epoch=on_epoch)
    final, best = published[-1], min(published, key=lambda row: row["loss"])
    of_mean = torch.nn.functional.mse_loss(target.mean(0).expand_as(wanted), wanted).item()
    print(json.dumps({"final": final, "best": best, "loss_of_mean": of_mean}), flush=True)
    ours: list[dict[str, float]] = []
    for n_epochs in TRIED:
        started = clock()
        chosen = parameters(d=d)
        model = fit(section, seen, chosen, n_epochs, [])
        seconds = clock() - started
        ours.append({"epochs": n_epochs, "seconds": seconds, "loss": loss_of(model, section, seen, held_out, chosen)})
        print(json.dumps(ours[-1]), flush=True)
        if ours[-1]["loss"] <= best["loss"]:
            break
    found: dict[str, Any] = {"published": published, "sphistex": ours, "loss_of_mean": of_mean}
    for name, theirs in (("final", final), ("best", best)):
        reached = [row["seconds"] for row in ours if row["loss"] <= theirs["loss"]]
        found[f"ratio_to_{name}"] = theirs["seconds"] / reached[0] if reached else None
    print(json.dumps({name: found[name] for name in ("ratio_to_final", "ratio_to_best")}), flush=True)
    return found


def loss_of(
    model: sx.tl.SuperResolver, section: Section, seen: NDArray, held_out: NDArray, chosen: FitParameters
) -> float:
    """Squared error at the held-out spots of the map that a model makes."""
    bags, measured = section.take(seen)
    rates = model.predict_tissue(FeatureMap(section.features, section.mask, chosen.context), bags, measured)
    tissue = section.bags.take(held_out).weights[:, section.mask.ravel()]
    counts = section.spots.counts
    found, wanted = (scaled(of, counts[seen]) for of in (tissue @ rates, counts[held_out]))
    return float(((found - wanted) ** 2).mean())


if __name__ == "__main__":
    main()
