"""How time grows with spots, genes and superpixels, each over a factor of 16: the exponents of power laws.

    python benchmarks/scaling.py --out scaling.json
    python benchmarks/scaling.py --only spots --scale 0.25
    python benchmarks/scaling.py --only --workers 2

More spots mean more superpixels, as on a larger section. The superpixels grow alone where a wider map is predicted
from as many spots, and where a wider image is encoded. Exponents are those of straight lines through the logarithms.

``--workers`` compares a cluster of so many processes of one thread with a single process that has as many threads: the
seconds of every step, and how far the results are from each other.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sections import Section, planted
from speed import fit

import sphistex as sx
from sphistex.nn import FeatureMap, FitParameters, SuperResolver, parameters

# Sides of a square whose area grows by a factor of 16.
SIDES = (16, 23, 32, 45, 64)
GENES = (125, 250, 500, 1000, 2000)
FEATURES, FEW_GENES, EPOCHS = 128, 100, 4
PX_PER_SIDE = 64  # of the image that is encoded: the smallest is a whole tile

Row = tuple[int, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    series = {"spots": by_spots, "genes": by_genes, "superpixels": by_area, "image": by_image}
    parser.add_argument("--only", choices=list(series), nargs="*", default=list(series))
    parser.add_argument("--workers", type=int, default=0, help="processes of a cluster")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes; below 1 to try it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    found: dict[str, Any] = {}
    for what in arguments.only:
        next(series[what](arguments.scale))  # what is done once, such as imports, is done now
        rows = list(series[what](arguments.scale))
        sizes = [size for size, _ in rows]
        found[what] = {"sizes": sizes}
        for step in rows[0][1]:
            seconds = [times[step] for _, times in rows]
            exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
            found[what][step] = {"seconds": [round(s, 3) for s in seconds], "exponent": round(exponent, 3)}
        print(json.dumps({what: found[what]}), flush=True)
    if arguments.workers:
        found["workers"] = on_workers(arguments.workers, round(1500 * arguments.scale**0.5))
        print(json.dumps(found["workers"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))


def by_spots(scale: float) -> Iterator[Row]:
    """Fit and prediction of sections of all sizes."""
    for side in SIDES:
        section = planted(max(round(side * scale**0.5), 4), FEATURES, FEW_GENES)
        yield len(section.spots.counts), fit_and_predict(section)


def by_genes(scale: float) -> Iterator[Row]:
    """Fit and prediction of a small section."""
    for n_genes in GENES:
        section = planted(SIDES[0], FEATURES, max(round(n_genes * scale), 2))
        yield len(section.genes), fit_and_predict(section)


def by_area(scale: float) -> Iterator[Row]:
    """Prediction of maps of all sizes from equally many spots, which are spread over them."""
    chosen = parameters()
    few = max(round(SIDES[0] * scale**0.5), 4)
    for side in SIDES:
        width = max(round(side * scale**0.5), 4)
        section = planted(width, FEATURES, FEW_GENES)
        lines = np.linspace(0, width - 1, few).round().astype(int)
        spots = (lines[:, None] * width + lines).ravel()
        model = fit(section, spots, chosen, 1, [])
        yield section.mask.size, {"predict": timed(predict, section, spots, chosen, model)}


def by_image(scale: float) -> Iterator[Row]:
    """Features of images of all sizes by the built-in encoder."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    for side in SIDES:
        px = round(side * PX_PER_SIDE * scale**0.5) // 16 * 16
        picture = np.random.default_rng(0).integers(0, 256, (3, px, px), dtype=np.uint8)
        sdata = SpatialData(images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"))})
        with tempfile.TemporaryDirectory() as folder:
            sx.settings.cache_dir = Path(folder)
            how = {"encoder": "efficientnet_lite0", "labels_key": None, "mpp": 0.5}
            yield (px // 16) ** 2, {"features": timed(sx.tl.superpixel_features, sdata, **how)}


def fit_and_predict(section: Section) -> dict[str, float]:
    chosen, everything = parameters(), np.arange(len(section.spots.counts))
    started = time.perf_counter()
    model = fit(section, everything, chosen, EPOCHS, [])
    seconds = time.perf_counter() - started
    return {"fit": seconds, "predict": timed(predict, section, everything, chosen, model)}


def predict(section: Section, spots: Any, chosen: FitParameters, model: SuperResolver) -> None:
    model.predict_tissue(FeatureMap(section.features, section.mask, chosen.context), *section.take(spots))


def on_workers(n_workers: int, size_um: int) -> dict[str, Any]:
    """Seconds and results of a single process and of a cluster, for a simulated section."""
    import torch
    from distributed import Client, LocalCluster

    torch.set_num_threads(n_workers)
    with tempfile.TemporaryDirectory() as folder:
        section = Path(folder) / "section.zarr"
        sx.datasets.simulate(size_um=size_um, n_genes=200).write(section)
        here, alone = whole_job(section, Path(folder) / "alone.zarr")
        started = time.perf_counter()
        with (
            LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            client.wait_for_workers(n_workers)
            client.run(torch.set_num_threads, 1)
            start = time.perf_counter() - started
            there, spread = whole_job(section, Path(folder) / "spread.zarr")
        features = (np.asarray(one.images["superpixel_features"].data) for one in (alone, spread))
        first, second = (np.asarray(one.tables["superres"].X) for one in (alone, spread))
        return {
            "superpixels": len(first),
            "alone": here,
            "cluster": there | {"start": start},
            "same_features": bool(np.array_equal(*features)),
            "same_counts": bool(np.array_equal(first, second)),
            "largest_difference_of_counts": float(np.abs(first - second).max() / first.max()),
            "correlation_of_counts": float(np.corrcoef(first.ravel(), second.ravel())[0, 1]),
        }


def whole_job(section: Path, copy: Path) -> tuple[dict[str, float], Any]:
    """Seconds of each step on a copy of a stored section, and the section with its result."""
    from spatialdata import read_zarr

    shutil.copytree(section, copy)
    sx.settings.cache_dir = copy.with_suffix(".cache")
    sdata = read_zarr(copy)
    sx.pp.tissue_mask(sdata)
    seconds = {"features": timed(sx.tl.superpixel_features, sdata, encoder="efficientnet_lite0")}
    started = time.perf_counter()
    model = sx.tl.fit(sdata)
    seconds["fit"] = time.perf_counter() - started
    seconds["predict"] = timed(sx.tl.predict, sdata, model)
    return seconds, sdata


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    started = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
