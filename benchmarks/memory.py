"""Peak memory against the size of the image: the whole pipeline on slides that exist only tile by tile.

    python benchmarks/memory.py --side 20000 50000 100000
    python benchmarks/memory.py --side 20000 50000 100000 --histology

The tissue, round pieces of the same area in all, lies far apart on the larger slides. Every size runs in a process of
its own. ``--histology`` fits a model to the slide's spots and predicts the same slide from its image alone.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

TILE, MPP, PIECES, RADIUS_PX, GENES = 2048, 0.5, 4, 1500, 50


class Colours:
    """A tiny encoder: means and spreads of the colours of each superpixel."""

    name, mpp, patch_size, dim, tile_size, halo_px, revision = "colours", MPP, 16, 6, 512, 0, "1"

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.floating]:
        n, height, width, _ = tiles.shape
        patches = tiles.reshape(n, height // 16, 16, width // 16, 16, 3).astype(np.float32)
        return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, nargs="+", default=[20_000, 50_000, 100_000])
    parser.add_argument("--genes", type=int, default=GENES)
    parser.add_argument("--histology", action="store_true", help="predict spots from the image, not superpixels")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(run(arguments.side[0], arguments.genes, arguments.histology)))
        return
    rows = []
    for side in arguments.side:
        command = [sys.executable, __file__, "--alone", "--side", str(side), "--genes", str(arguments.genes)]
        command += ["--histology"] * arguments.histology
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(found.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    peaks = [row["peak_gib"] for row in rows]
    print(f"largest / smallest peak: {max(peaks) / min(peaks):.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


def run(side: int, n_genes: int, histology: bool) -> dict[str, Any]:
    import sphistex as sx

    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    centres = np.array([[0.2, 0.2], [0.8, 0.3], [0.3, 0.8], [0.75, 0.75]])[:PIECES] * side
    row, column = np.indices((40, 40)).reshape(2, -1)
    around = 100 / MPP * np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2]) - 2600
    cell = 100 / MPP * np.array([1, np.sqrt(3)])  # of one lattice over all pieces
    xy = np.concatenate([np.round(centre / cell) * cell + around for centre in centres])
    inside = np.linalg.norm(xy[:, None] - centres, axis=-1).min(1) < RADIUS_PX - 60
    xy = xy[inside]
    counts = np.random.default_rng(0).poisson(5, (len(xy), n_genes)).astype(np.float32)
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        sdata = sx.io.from_spots(slide(side, centres), AnnData(counts), xy, spot_diameter_um=55, spot_pitch_um=100)
        sdata.attrs["sphistex"] = {}
        sx.settings.cache_dir = Path(folder)
        how: dict[str, Any] = {"encoder": Colours(), "mpp": MPP}
        steps: dict[str, Callable[[], Any]] = {
            "tissue": lambda: sx.pp.tissue_mask(sdata, mpp=MPP, mask=stained(side, centres))
        }
        if histology:
            alone = SpatialData(images={"image": sdata.images["image"]})
            fit = partial(sx.tl.fit_histology, sdata, genes=n_genes, epochs=2, **how)
            steps |= {
                "tissue_alone": lambda: sx.pp.tissue_mask(alone, mpp=MPP, mask=stained(side, centres)),
                "fit_and_predict": lambda: sx.tl.predict_histology(alone, fit(), **how),
            }
        else:
            steps |= {
                "features": lambda: sx.tl.superpixel_features(sdata, **how),
                "super_resolve": lambda: sx.tl.super_resolve(sdata, genes=n_genes, epochs=2, **how),
            }
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name] = round(time.perf_counter() - started, 1)
            peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        table = alone.tables["histology"] if histology else sdata.tables["superres"]
    return {
        "side_px": side,
        "rows": table.n_obs,
        "spots": len(xy),
        "seconds": seconds,
        "peak_gib_after": peaks,
        "peak_gib": max(peaks.values()),
    }


def stained(side: int, centres: NDArray) -> NDArray[np.bool_]:
    """The tissue on the grid, piece by piece: nothing here is to be larger than the mask itself."""
    tissue = np.zeros((-(-side // 16),) * 2, dtype=bool)
    for centre in centres:
        first = np.maximum((centre - RADIUS_PX) // 16, 0).astype(int)
        last = np.minimum((centre + RADIUS_PX) // 16 + 1, len(tissue)).astype(int)
        x, y = (np.arange(a, b) * 16 + 8 - at for a, b, at in zip(first, last, centre, strict=True))
        tissue[first[1] : last[1], first[0] : last[0]] |= y[:, None] ** 2 + x**2 < RADIUS_PX**2
    return tissue


def slide(side: int, centres: NDArray) -> da.Array:
    """An RGB image (3, side, side) that is made when it is read."""

    def tile(block_info: Any = None) -> NDArray[np.uint8]:
        (top, bottom), (left, right) = block_info[None]["array-location"][1:]
        picture = np.full((3, bottom - top, right - left), 240, dtype=np.uint8)
        nearest = centres.clip((left, top), (right, bottom))
        apart = np.linalg.norm(nearest - centres, axis=1)
        if apart.min() > RADIUS_PX:
            return picture
        x, y = centres[apart.argmin()]
        tissue = (np.arange(top, bottom)[:, None] - y) ** 2 + (np.arange(left, right) - x) ** 2 < RADIUS_PX**2
        noise = np.random.default_rng([top, left]).integers(90, 220, (3, *tissue.shape), dtype=np.uint8)
        picture[:, tissue] = noise[:, tissue]
        return picture

    chunks = da.core.normalize_chunks((3, TILE, TILE), (3, side, side))
    return da.map_blocks(tile, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))


if __name__ == "__main__":
    main()
