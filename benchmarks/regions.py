"""What is done with a large result: CPU time and memory of each function and picture.

    python benchmarks/regions.py --superpixels 300000 --genes 1000 --cells 100000
    python benchmarks/regions.py --superpixels 700000 --genes 1000 --steps annotate

``--steps`` runs only those whose names begin so. Expression and cells are drawn at random, the image is noise.
``memory_gib`` is the peak of a step above what was there before it, which is the result itself and what earlier steps
added. Overlaps of polygons are also measured as GEOS cuts them out, square by square. Linux only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import shapely
import zarr
from anndata import AnnData
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import sphistex as sx

PITCH_PX = 16
CORNERS = 32
COMPARED = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--superpixels", type=int, default=300_000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--steps", nargs="+", default=[""])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    _ = sx.tl, sx.pl  # imports are not measured
    side = round(arguments.superpixels**0.5)
    rng = np.random.default_rng(0)
    outlines = cells(side, arguments.cells, rng)
    signature = [f"gene{i}" for i in range(12)]
    sets = {f"set{i}": [f"gene{j}" for j in range(i, arguments.genes, 20)] for i in range(20)}
    wanted = tuple(arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        sdata = section(side, arguments.genes, rng)
        sdata.shapes["cells"] = ShapesModel.parse(
            GeoDataFrame(geometry=outlines), transformations={"global": Identity()}
        )
        middles = shapely.centroid(outlines)
        sdata.shapes["circles"] = ShapesModel.parse(
            shapely.get_coordinates(middles), geometry=0, radius=10.0, transformations={"global": Identity()}
        )
        nuclei(sdata, side, Path(folder), arguments.cells)
        steps: dict[str, Callable[[], Any]] = {
            "aggregate_by, polygons": lambda: sx.tl.aggregate_by(sdata, "cells"),
            "aggregate_by, circles": lambda: sx.tl.aggregate_by(sdata, "circles"),
            "aggregate_by, labels": lambda: sx.tl.aggregate_by(sdata, "nuclei"),
            "interface": lambda: sx.tl.interface(sdata, ("annotation", "tumour")),
            "profiles, 20 genes": lambda: sx.tl.profiles(sdata, [f"gene{i}" for i in range(20)]),
            "aggregates": lambda: sx.tl.aggregates(sdata, signature, threshold="chance"),
            "pl.interface": lambda: sx.pl.interface(sdata, save=Path(folder) / "interface.pdf"),
            "pl.profiles": lambda: sx.pl.profiles(sdata, signature, save=Path(folder) / "profiles.pdf"),
            "pl.aggregates": lambda: sx.pl.aggregates(sdata, save=Path(folder) / "aggregates.pdf"),
            "annotate, number chosen": lambda: sx.tl.annotate(sdata, key_added="clusters"),
            "annotate, 8 clusters, smoothed": lambda: sx.tl.annotate(
                sdata, n_clusters=8, smooth_um=16, key_added="clusters"
            ),
            "transfer_annotation": lambda: sx.tl.transfer_annotation(sdata, "pathologist"),
            "markers, 2 groups": lambda: sx.tl.markers(sdata, table_key="superres", groupby="annotation"),
            "enrich, 20 sets": lambda: sx.tl.enrich(
                sdata, table_key="superres", gene_sets=sets, groupby="annotation", min_genes=2
            ),
            "spatial_patterns, 50 genes, no null": lambda: sx.tl.spatial_patterns(sdata, null=False),
            "spatial_patterns, all genes, no null nor sepal": lambda: sx.tl.spatial_patterns(
                sdata, genes="all", statistics=("moran", "geary", "fine"), null=False
            ),
            "confidence, 4 genes, 32 µm": lambda: sx.tl.confidence(sdata, signature[:4], scale_um=32),
            "confidence, 4 genes, 8 µm": lambda: sx.tl.confidence(sdata, signature[:4]),
            "pl.annotation": lambda: sx.pl.annotation(
                sdata, ["clusters", "pathologist"], save=Path(folder) / "annotation.pdf"
            ),
            "pl.expression, 4 genes": lambda: sx.pl.expression(
                sdata, signature[:4], save=Path(folder) / "expression.pdf"
            ),
            "pl.rgb, 3 genes": lambda: sx.pl.rgb(sdata, signature[:3], save=Path(folder) / "rgb.pdf"),
            "pl.confidence, 2 genes": lambda: sx.pl.confidence(
                sdata, signature[:2], save=Path(folder) / "confidence.pdf"
            ),
            "pl.activity": lambda: sx.pl.activity(sdata, table_key="superres", save=Path(folder) / "activity.pdf"),
            "pl.enrichment": lambda: sx.pl.enrichment(
                sdata, table_key="superres", save=Path(folder) / "enrichment.pdf"
            ),
        }
        for name, step in steps.items():
            if not name.startswith(wanted):
                continue
            print(json.dumps({"step": name} | measured(step)), flush=True)
            for table in ("cells_superres", "circles_superres", "nuclei_superres"):
                sdata.tables.pop(table, None)
    if not "overlaps".startswith(wanted):
        return
    some = shapely.transform(outlines[:COMPARED], lambda xy: xy / PITCH_PX)
    grid = sx.Grid((side, side), mpp=1.0, pitch_um=1.0)
    for name, overlaps in (("edges", lambda: sx.Bags.from_polygons(grid, some)), ("GEOS", lambda: by_geos(some))):
        print(json.dumps({"step": f"overlaps of {len(some)} cells, {name}"} | measured(overlaps)), flush=True)


def measured(step: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of a step and its peak memory in GiB, above that before it."""
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak again
    before, started = resident("VmRSS"), time.process_time()
    step()
    return {
        "cpu_s": round(time.process_time() - started, 2),
        "memory_gib": round(resident("VmHWM") - before, 2),
        "peak_gib": round(resident("VmHWM"), 2),
    }


def resident(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**20


def section(side: int, n_genes: int, rng: np.random.Generator) -> SpatialData:
    """A dense result on a square, with an annotation of smooth borders, an image of noise, and spots."""
    n = side**2
    row, column = np.indices((side, side)).reshape(2, -1)
    counts = np.empty((n, n_genes), np.float32)
    for first in range(0, n, 10_000):
        counts[first : first + 10_000] = rng.standard_exponential((min(10_000, n - first), n_genes), dtype=np.float32)
    high = np.sin(row / 17) * np.sin(column / 23) > 0.9
    counts[high, :12] *= 5
    obs = pd.DataFrame({"array_row": row, "array_col": column, "instance_id": np.arange(1, n + 1)})
    obs["region"] = pd.Categorical(["superres_labels"] * n)
    obs["annotation"] = pd.Categorical(np.where(np.sin(row / 40) + np.cos(column / 31) > 0.4, "tumour", "stroma"))
    obs.index = obs["instance_id"].astype(str)
    obs.index.name = None
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))
    table.obsm["spatial"] = (np.column_stack([column, row]) + 0.5) * PITCH_PX
    table.var["mean_count"], table.var["error_variance"] = counts.mean(0, dtype=float), 0.5
    table.uns["superres"] = {
        "pitch_um": 8.0,
        "mpp": 0.5,
        "section": {"image_key": "image", "shapes_key": "spots", "table_key": "counts", "coordinate_system": "global"},
        "crop": [0, 0],
        "tissue_key": "tissue",
        "calibration": {"side_um": 49.0, "pitch_um": 8.0, "coverage": np.linspace(0, 1, 201), "n_spots": 500},
    }
    table = TableModel.parse(table, region="superres_labels", region_key="region", instance_key="instance_id")
    ids = np.arange(1, n + 1, dtype=np.int32).reshape(side, side)
    placed = {"global": Scale([PITCH_PX] * 2, axes=("x", "y"))}
    picture = da.random.default_rng(0).integers(
        150, 255, (3, *(side * PITCH_PX,) * 2), dtype="u1", chunks=(3, 2048, 2048)
    )
    tissue = Labels2DModel.parse(np.ones((side, side), np.uint8), dims=("y", "x"), transformations=placed)
    spots, measured_counts = visium(side, n_genes, rng)
    return SpatialData(
        images={"image": Image2DModel.parse(picture, dims=("c", "y", "x"), scale_factors=[4, 4])},
        labels={
            "superres_labels": Labels2DModel.parse(ids, dims=("y", "x"), transformations=placed),
            "tissue": tissue,
        },
        shapes={"spots": spots},
        tables={"superres": table, "counts": measured_counts},
    )


def visium(side: int, n_genes: int, rng: np.random.Generator) -> tuple[GeoDataFrame, AnnData]:
    """Spots of 55 µm, 100 µm apart, with counts at random and the classes of a pathologist."""
    pitch_px, size = 200, side * PITCH_PX
    row, column = np.indices((int(size / (pitch_px * 3**0.5 / 2)), size // pitch_px)).reshape(2, -1)
    xy = (np.column_stack([column + row % 2 / 2, row * 3**0.5 / 2]) + 0.4) * pitch_px
    spots = ShapesModel.parse(xy, geometry=0, radius=55.0, transformations={"global": Identity()})
    obs = pd.DataFrame({"instance_id": np.arange(len(xy)), "region": pd.Categorical(["spots"] * len(xy))})
    obs["pathologist"] = np.where(np.sin(row / 4) + np.cos(column / 3) > 0.4, "tumour", "stroma")
    obs.index = obs.index.astype(str)
    counts = rng.poisson(30, (len(xy), n_genes)).astype(np.float32)
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))
    return spots, TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")


def cells(side: int, n: int, rng: np.random.Generator) -> NDArray[np.object_]:
    """Outlines of cells of about 10 µm, in pixels of the image."""
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radius = 10 * rng.uniform(0.7, 1.3, (n, 1)) * (1 + 0.1 * rng.standard_normal((n, CORNERS)).clip(-2, 2))
    middle = rng.uniform(0, side * PITCH_PX, (n, 1, 2))
    return shapely.polygons(middle + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1))


def nuclei(sdata: SpatialData, side: int, folder: Path, n: int) -> None:
    """Labels of square nuclei on a lattice, on disk, as large as the image."""
    size, pitch = side * PITCH_PX, int((side * PITCH_PX) / n**0.5)
    chunks = (2048, 2048)
    store = zarr.create_array(folder / "nuclei.zarr", shape=(size, size), chunks=chunks, dtype="int32")
    for top in range(0, size, chunks[0]):
        y, x = np.arange(top, min(top + chunks[0], size))[:, None], np.arange(size)[None]
        inside = (y % pitch < 0.7 * pitch) & (x % pitch < 0.7 * pitch)
        store[top : top + chunks[0]] = np.where(inside, 1 + (y // pitch) * (size // pitch + 1) + x // pitch, 0)
    sdata.labels["nuclei"] = Labels2DModel.parse(
        da.from_zarr(folder / "nuclei.zarr"), dims=("y", "x"), transformations={"global": Identity()}
    )


def by_geos(polygons: NDArray[np.object_]) -> None:
    """Every pair of a polygon and a square that its bounds touch, intersected."""
    bounds = shapely.bounds(polygons)
    low, high = np.floor(bounds[:, :2]).astype(int), np.ceil(bounds[:, 2:]).astype(int)
    columns, rows = (high - low).T
    owner = np.repeat(np.arange(len(polygons)), columns * rows)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(columns * rows) - columns * rows, columns * rows)
    column, row = low[owner, 0] + place % columns[owner], low[owner, 1] + place // columns[owner]
    shapely.area(shapely.intersection(polygons[owner], shapely.box(column, row, column + 1, row + 1)))


if __name__ == "__main__":
    main()
