"""How fast sphistex encodes, trains, predicts and does all of it, beside the published training loop, in one run.

    python benchmarks/speed.py --spots-per-side 20 40 --end-to-end 1500 3000 --out speed.json

At the published sizes: 1,029 features, 1,000 genes, bags of 49 superpixels. Throughput counts the bags that models
are trained on, one bag for one model being one; with features as they are, and with the two surroundings that
sphistex looks at by default. Achieved rates are those of the operations that torch counts, as a share of the largest
matrix product of the device and number type in the same run. End to end, simulated sections are made into tables; real
ones are in end_to_end.py, and the time to a loss is in reach.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch
from numpy.typing import NDArray
from sections import NEIGHBOURS, SIDE, Section, as_published, planted
from torch.utils.flop_counter import FlopCounterMode

import sphistex as sx
from sphistex.encoders.base import resolve_device
from sphistex.encoders.batching import Batches
from sphistex.encoders.side_by_side import alone, replicas, shares_the_cores
from sphistex.encoders.tiling import Tiling
from sphistex.nn import FeatureMap, FitParameters, SuperResolver, parameters
from sphistex.nn.precision import fastest_dtype

MPP = (0.5, 0.25)  # of images: as the encoder takes them, and twice as fine
CONTEXTS = ((0,), parameters().context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots-per-side", type=int, nargs="+", default=[40])
    parser.add_argument("--features", type=int, default=1029)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--d", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--epochs", type=int, default=3, help="epochs that are timed")
    parser.add_argument("--image", type=int, default=2048, metavar="PX", help="side of the image that is encoded")
    parser.add_argument("--end-to-end", type=int, nargs="*", default=[], metavar="UM", help="sides of sections")
    parser.add_argument("--at-least", type=float, help="fail if training is not this many times as fast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress, sx.settings.device = False, arguments.device
    peak = peaks()
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "peak_tflops": peak}
    print(json.dumps(found))
    found |= {"features": [features(arguments.image, mpp, peak) for mpp in MPP], "training": [], "prediction": []}
    for spots_per_side in arguments.spots_per_side:
        section = planted(spots_per_side, arguments.features, arguments.genes)
        found["training"] += [row for d in arguments.d for row in training(section, d, arguments.epochs, peak)]
        found["prediction"] += [prediction(section, context) for context in CONTEXTS]
    found["end_to_end"] = [end_to_end(size_um, arguments.genes) for size_um in arguments.end_to_end]
    found |= memory()
    print(json.dumps(memory()))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    slowest = min(row["ratio"] for row in found["training"] if row["what"] == "sphistex")
    if arguments.at_least is not None and slowest < arguments.at_least:
        raise SystemExit(f"training is {slowest:.1f} times as fast as the published loop, not {arguments.at_least}")


def device() -> torch.device:
    return resolve_device(sx.settings.device)


def memory() -> dict[str, float]:
    """Largest memory so far."""
    found = {"peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if device().type == "cuda":
        found["peak_device_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def peaks(size: int = 2048) -> dict[str, float]:
    """The rate of a large matrix product, in TFLOP/s."""
    found = {}
    for dtype in {torch.float32, fastest_dtype(device())}:
        a, b = torch.randn(2, size, size, device=device()).to(dtype)
        (a @ b)[0, 0].item()  # waits for the device
        started = time.perf_counter()
        for _ in range(5):
            product = a @ b
        product[0, 0].item()
        found[str(dtype)] = 5 * 2 * size**3 / (time.perf_counter() - started) / 1e12
    return found


# ------------------------------------------------------------------------------------------------- features


def features(side: int, mpp: float, peak: dict[str, float]) -> dict[str, Any]:
    """Tiles a second of the built-in encoder, with reading and resampling an image of so many microns per pixel."""
    tiling = Tiling.of(sx.encoders.get("efficientnet_lite0"))
    image = np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)
    n = round(side * mpp / 8)
    tissue = np.ones((n, n), dtype=bool)
    block, copies = tiling.block(slice(0, n), slice(0, n), tissue), replicas(tiling.encoder)
    window = tiling.window(image.shape, mpp, block)

    def run(encoder: sx.encoders.Encoder) -> None:
        picture = window.resampled(window.of_image(image))
        with alone if shares_the_cores(encoder) else nullcontext():
            tiling.join(Batches(encoder)(tiling.cut(picture, block)), block, tissue)

    with FlopCounterMode(display=False) as counter:
        run(tiling.encoder)
    with ThreadPoolExecutor(len(copies)) as pool:
        started = time.perf_counter()
        list(pool.map(run, copies))
        seconds = time.perf_counter() - started
    tiles, operations = len(copies) * len(block.tiles), len(copies) * counter.get_total_flops()
    row = {
        "what": "features",
        "mpp": mpp,
        "tiles_per_s": tiles / seconds,
        "superpixels_per_s": len(copies) * tissue.size / seconds,
        "gflop_per_tile": operations / tiles / 1e9,
        "tflops": operations / seconds / 1e12,
    }
    dtype = torch.float32 if device().type == "cpu" else fastest_dtype(device())
    row["share_of_peak"] = row["tflops"] / peak[str(dtype)]
    print(json.dumps(row), flush=True)
    return row


# ------------------------------------------------------------------------------------------------- training


def training(section: Section, d: int, epochs: int, peak: dict[str, float]) -> list[dict[str, Any]]:
    """Bags x models a second, operations and share of the peak, of the published loop and of ours."""
    rows = [published_training(section, d, epochs)]
    rows += [our_training(section, parameters(context=context, d=d), epochs) for context in CONTEXTS]
    for row in rows:
        row["share_of_peak"] = row["tflops"] / peak[row["dtype"]]
        row["ratio"] = row["bags_models_per_s"] / rows[0]["bags_models_per_s"]
        print(json.dumps(row), flush=True)
    return rows


def published_training(section: Section, d: int, epochs: int) -> dict[str, Any]:
    superpixels, tokens, target = as_published(section, np.arange(len(section.spots.counts)), device=device())
    times: list[float] = []
    reference.train(
        superpixels, tokens, target, d=d, epochs=epochs + 1, on_epoch=lambda _, seconds, __: times.append(seconds)
    )
    seconds = (times[-1] - times[0]) / epochs
    operations = reference.operations(len(target), SIDE**2, NEIGHBOURS, superpixels.shape[-1], target.shape[-1], d)
    return {
        "what": "published loop",
        "spots": len(target),
        "d": d,
        "dtype": "torch.float32",
        "bags_models_per_s": len(target) / seconds,
        "gflop_per_bag": operations / len(target) / 1e9,
        "tflops": operations / seconds / 1e12,
    }


def our_training(section: Section, chosen: FitParameters, epochs: int) -> dict[str, Any]:
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
        "spots": len(section.spots.counts),
        "d": chosen.d,
        "context": list(chosen.context),
        "dtype": str(model.dtype),
        "bags_models_per_s": trained / seconds,
        "gflop_per_bag": (counted[1] - counted[0]) / trained / 1e9,
        "tflops": (counted[1] - counted[0]) / seconds / 1e12,
    }


def fit(section: Section, spots: NDArray, chosen: FitParameters, epochs: int, times: list[float]) -> SuperResolver:
    """A fit to some of the spots; the ends of its epochs are added to ``times``."""
    bags, measured = section.take(spots)
    return SuperResolver.fit(
        FeatureMap(section.features, section.mask, chosen.context),
        bags,
        measured,
        section.genes,
        replace(chosen, epochs=epochs, patience=None),
        device=device(),
        on_epoch=lambda *_: times.append(time.perf_counter()),
    )


# ----------------------------------------------------------------------------------------------- prediction


def prediction(section: Section, context: tuple[int, ...]) -> dict[str, Any]:
    """Superpixels a second, of all genes."""
    chosen, everything = parameters(context=context), np.arange(len(section.spots.counts))
    model = fit(section, everything, chosen, 1, [])
    started = time.perf_counter()
    model.predict_tissue(FeatureMap(section.features, section.mask, context), section.bags, section.spots)
    seconds = time.perf_counter() - started
    row = {"what": "prediction", "context": list(context), "superpixels_per_s": section.mask.size / seconds}
    print(json.dumps(row), flush=True)
    return row


# ----------------------------------------------------------------------------------------------- end to end


def end_to_end(size_um: int, n_genes: int) -> dict[str, Any]:
    """Seconds from image and spots to the table of a simulated section, by the built-in encoder."""
    sdata = sx.datasets.simulate(size_um=size_um, n_genes=n_genes)
    with tempfile.TemporaryDirectory() as folder:
        sx.settings.cache_dir = Path(folder)
        started = time.perf_counter()
        sx.tl.super_resolve(sdata, encoder="efficientnet_lite0")
        seconds = time.perf_counter() - started
    table = sdata.tables["superres"]
    row = {"what": "end to end", "size_um": size_um, "superpixels": table.n_obs, "genes": table.n_vars}
    row |= {"seconds": seconds, **memory()}
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
