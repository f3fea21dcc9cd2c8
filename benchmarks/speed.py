"""How fast sphistex trains and predicts, beside the published training loop, in one run.

    python benchmarks/speed.py --spots-per-side 20 --out speed.json

At the published sizes: 1,029 features, 1,000 genes, bags of 49 superpixels. Throughput counts the bags that models
are trained on, one bag for one model being one; with features as they are, and with the two surroundings that
sphistex looks at by default. Achieved rates are those of the operations that torch counts, as a share of the largest
matrix product of the device and number type in the same run. ``--reach`` trains until the published loop's held-out
loss at its end is reached: both see the same spots, and are scored by the squared error of min-max scaled counts of
the fifth that they do not see.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch
from numpy.typing import NDArray
from planted import SIDE, Planted, planted
from scipy.spatial import KDTree
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sphistex.nn import FeatureMap, FitParameters, SuperResolver, parameters
from sphistex.nn.precision import fastest_dtype

NEIGHBOURS = 6
CONTEXTS = ((0,), parameters().context)
# Epochs of a fit that are tried until one reaches the published loop's loss.
TRIED = (2, 4, 8, 15, 25, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots-per-side", type=int, default=20)
    parser.add_argument("--features", type=int, default=1029)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--d", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--epochs", type=int, default=3, help="epochs that are timed")
    parser.add_argument("--reach", type=int, default=0, metavar="EPOCHS", help="epochs of the published loop, once 500")
    parser.add_argument("--at-least", type=float, help="fail if training is not this many times as fast")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    section = planted(arguments.spots_per_side, arguments.features, arguments.genes)
    peak = peaks()
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "peak_tflops": peak}
    print(json.dumps(found))
    found["training"] = [row for d in arguments.d for row in training(section, d, arguments.epochs, peak)]
    found["prediction"] = [prediction(section, context) for context in CONTEXTS]
    if arguments.reach:
        found["reach"] = reach(section, arguments.d[0], arguments.reach)
    found["peak_rss_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak_rss_gib": found["peak_rss_gib"]}))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    slowest = min(row["ratio"] for row in found["training"] if row["what"] == "sphistex")
    if arguments.at_least is not None and slowest < arguments.at_least:
        raise SystemExit(f"training is {slowest:.1f} times as fast as the published loop, not {arguments.at_least}")


def peaks(size: int = 2048) -> dict[str, float]:
    """The rate of a large matrix product, in TFLOP/s."""
    found = {}
    for dtype in {torch.float32, fastest_dtype("cpu")}:
        a, b = torch.randn(2, size, size).to(dtype)
        a @ b
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        found[str(dtype)] = 5 * 2 * size**3 / (time.perf_counter() - started) / 1e12
    return found


# ------------------------------------------------------------------------------------------------- training


def training(section: Planted, d: int, epochs: int, peak: dict[str, float]) -> list[dict[str, Any]]:
    """Bags x models a second, operations and share of the peak, of the published loop and of ours."""
    rows = [published_training(section, d, epochs)]
    rows += [our_training(section, parameters(context=context, d=d), epochs) for context in CONTEXTS]
    for row in rows:
        row["share_of_peak"] = row["tflops"] / peak[row["dtype"]]
        row["ratio"] = row["bags_models_per_s"] / rows[0]["bags_models_per_s"]
        print(json.dumps(row), flush=True)
    return rows


def published_training(section: Planted, d: int, epochs: int) -> dict[str, Any]:
    superpixels, tokens, target = bag_arrays(section, np.arange(len(section.spots.counts)))
    times: list[float] = []
    reference.train(
        superpixels, tokens, target, d=d, epochs=epochs + 1, on_epoch=lambda _, seconds: times.append(seconds)
    )
    seconds = (times[-1] - times[0]) / epochs
    operations = reference.operations(len(target), SIDE**2, NEIGHBOURS, superpixels.shape[-1], target.shape[-1], d)
    return {
        "what": "published loop",
        "d": d,
        "dtype": "torch.float32",
        "bags_models_per_s": len(target) / seconds,
        "gflop_per_bag": operations / len(target) / 1e9,
        "tflops": operations / seconds / 1e12,
    }


def our_training(section: Planted, chosen: FitParameters, epochs: int) -> dict[str, Any]:
    """Of what is between the ends of epochs: bags drawn anew, training and validation."""
    times: list[float] = []
    model = fit(section, np.arange(len(section.spots.counts)), chosen, epochs + 1, times)
    seconds = (times[-1] - times[0]) / epochs
    counted = []
    for n_epochs in (1, 2):
        with FlopCounterMode(display=False) as counter:
            fit(section, np.arange(len(section.spots.counts)), chosen, n_epochs, [])
        counted.append(counter.get_total_flops())
    trained = chosen.n_models * len(section.spots.counts) * (1 - chosen.holdout)
    return {
        "what": "sphistex",
        "d": chosen.d,
        "context": list(chosen.context),
        "dtype": str(model.dtype),
        "bags_models_per_s": trained / seconds,
        "gflop_per_bag": (counted[1] - counted[0]) / trained / 1e9,
        "tflops": (counted[1] - counted[0]) / seconds / 1e12,
    }


def fit(section: Planted, spots: NDArray, chosen: FitParameters, epochs: int, times: list[float]) -> SuperResolver:
    """A fit to some of the spots; the ends of its epochs are added to ``times``."""
    bags, measured = section.take(spots)
    return SuperResolver.fit(
        FeatureMap(section.features, section.mask, chosen.context),
        bags,
        measured,
        section.genes,
        replace(chosen, epochs=epochs, patience=None),
        on_epoch=lambda *_: times.append(time.perf_counter()),
    )


# ----------------------------------------------------------------------------------------------- prediction


def prediction(section: Planted, context: tuple[int, ...]) -> dict[str, Any]:
    """Superpixels a second, of all genes."""
    chosen, everything = parameters(context=context), np.arange(len(section.spots.counts))
    model = fit(section, everything, chosen, 1, [])
    started = time.perf_counter()
    model.predict_tissue(FeatureMap(section.features, section.mask, context), section.bags, section.spots)
    seconds = time.perf_counter() - started
    row = {"what": "prediction", "context": list(context), "superpixels_per_s": section.mask.size / seconds}
    print(json.dumps(row), flush=True)
    return row


# ------------------------------------------------------------------------------------------- time to a loss


def reach(section: Planted, d: int, epochs: int) -> dict[str, Any]:
    """Seconds until the published loop's final loss at held-out spots, of its one model and of our three."""
    order = np.random.default_rng(0).permutation(len(section.spots.counts))
    held_out, seen = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])
    *inputs, target = bag_arrays(section, seen)
    times: list[float] = []
    (model,) = reference.train(*inputs, target, d=d, epochs=epochs, on_epoch=lambda _, s: times.append(s))
    *unseen, wanted = bag_arrays(section, seen, held_out)
    with torch.no_grad():
        loss = torch.nn.functional.mse_loss(model.eval()(*unseen), wanted).item()
    row: dict[str, Any] = {"what": "reach", "d": d, "epochs": epochs, "published_s": times[-1], "published_loss": loss}
    row["mean_loss"] = torch.nn.functional.mse_loss(target.mean(0).expand_as(wanted), wanted).item()
    for n_epochs in TRIED:
        started = time.perf_counter()
        ours = fit(section, seen, parameters(d=d), n_epochs, [])
        row["sphistex_s"] = time.perf_counter() - started
        bags, measured = section.take(seen)
        rates = ours.predict_tissue(FeatureMap(section.features, section.mask, (0, 1, 5)), bags, measured)
        found = scaled(section.bags.take(held_out).weights @ rates, measured.counts)
        row["sphistex_epochs"], row["sphistex_loss"] = n_epochs, torch.nn.functional.mse_loss(found, wanted).item()
        print(json.dumps(row), flush=True)
        if row["sphistex_loss"] <= loss:
            break
    row["ratio"] = row["published_s"] / row["sphistex_s"] if row["sphistex_loss"] <= loss else None
    print(json.dumps(row), flush=True)
    return row


def bag_arrays(section: Planted, seen: NDArray, wanted: NDArray | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Superpixels, neighbours and scaled counts of the ``wanted`` spots (default: those that are ``seen``)."""
    own = 1 if wanted is None else 0
    wanted = seen if wanted is None else wanted
    places = section.spots.xy_um
    around = KDTree(places[seen]).query(places[wanted], k=NEIGHBOURS + own)[1][:, own:]
    index = section.bags.take(wanted).weights.indices.reshape(len(wanted), SIDE**2)
    superpixels = section.features.reshape(len(section.features), -1).T[index]
    counts = section.spots.counts
    target = scaled(counts[wanted], counts[seen])
    return torch.from_numpy(superpixels.astype(np.float32)), scaled(counts[seen], counts[seen])[around], target


def scaled(counts: NDArray, of: NDArray) -> Tensor:
    """Counts between the least and the largest ``of`` the seen spots."""
    low, high = of.min(0), of.max(0)
    return torch.from_numpy(((counts - low) / np.maximum(high - low, 1e-8)).astype(np.float32))


if __name__ == "__main__":
    main()
