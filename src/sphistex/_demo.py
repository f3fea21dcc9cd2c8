"""The demonstration: a simulated section from image to table, and how near the result comes to the truth."""

from __future__ import annotations

import logging
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex import datasets, metrics, pl, tl
from sphistex._section import resolve_section
from sphistex.metrics import baselines

logger = logging.getLogger("sphistex")

# The whole demonstration is done in minutes on two cores with the encoder that comes with the package.
ENCODER = "efficientnet_lite0"
METHODS = ("nearest spot", "linear interpolation", "sphistex")
CEILING = "noise ceiling"
_SHOWN_KINDS = ("marker", "mixed", "gradient")


def run_demo(
    out: Path, *, size_um: float = 2000.0, n_genes: int = 200, seed: int = 0, device: str | None = None, **fit: Any
) -> str:
    """Simulate, super-resolve, draw and score; everything is written into the folder ``out``.

    Returns the summary, which is also in ``out/summary.txt``.
    """
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    with _timed("simulate a section", seconds):
        sdata = datasets.simulate(size_um=size_um, n_genes=n_genes, seed=seed)
        sdata.write(out / "demo.zarr", overwrite=True)
    with _timed("super-resolve it", seconds):
        model = tl.super_resolve(sdata, genes=n_genes, encoder=ENCODER, seed=seed, device=device, **fit)
    with _timed("draw the pictures", seconds):
        pl.features(sdata, save=out / "features.png")
        genes = _one_of_each_kind(sdata.tables["superres"])
        pl.expression(sdata, genes, truth="truth", truth_layer="expected", save=out / "expression.png")
        if model.calibration is not None:
            pl.confidence(sdata, genes, save=out / "confidence.png")
        pl.training(model, save=out / "training.png")
    with _timed("compare with the truth", seconds):
        scores, n_superpixels = accuracy(sdata)
    summary = _summary(scores, n_superpixels, len(model.genes), seconds, str(model.info["device"]))
    (out / "summary.txt").write_text(summary)
    return summary


@contextmanager
def _timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    logger.info("%s ...", step)
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start


def _one_of_each_kind(table: AnnData) -> list[str]:
    """The most abundant gene of each kind that differs in where its expression comes from."""
    order = np.argsort(-np.asarray(table.X.sum(axis=0)).ravel())
    kinds = table.var["kind"].iloc[order]
    return [str(kinds.index[kinds == kind][0]) for kind in _SHOWN_KINDS if (kinds == kind).any()]


def accuracy(sdata: SpatialData, *, key: str = "superres", truth: str = "truth") -> tuple[pd.DataFrame, int]:
    """Mean Pearson r over genes of a result and of the two baselines, at 8, 16, 32 and 64 µm.

    Returns
    -------
    Table with index (``against``, ``method``) and one column per scale in µm; and on how many superpixels it was
    measured. ``against`` is ``"counts"``, sampled from the truth, or ``"expected"``, the truth without that sampling
    noise. The ceiling is what the expected counts themselves reach against the sampled ones.
    """
    table, true = sdata.tables[key], sdata.tables[truth]
    own, counts, mask, genes = metrics.from_tables(table, true)
    expected = metrics.from_tables(table, true, layer="expected")[1]
    maps = _interpolated(sdata, table, mask, genes) | {METHODS[-1]: own}
    rows = {
        (against, method): metrics.correlation_by_scale(values, target, mask, statistics=("pearson",))
        .groupby("scale_um")["pearson"]
        .mean()
        for against, target in (("counts", counts), ("expected", expected))
        for method, values in (maps | ({CEILING: expected} if against == "counts" else {})).items()
    }
    scores = pd.DataFrame(rows).T
    scores.index.names = ["against", "method"]
    return scores, int(mask.sum())


def _interpolated(
    sdata: SpatialData, table: AnnData, mask: NDArray[np.bool_], genes: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Counts per superpixel of the mask (n_superpixels, n_genes) by the baselines."""
    made = table.uns["superres"]
    section = resolve_section(sdata, mpp=made["mpp"], **made["section"])
    measured = section.table[:, genes].X
    measured = measured.toarray() if hasattr(measured, "toarray") else measured
    density = measured / (np.pi * (section.radius_px / section.grid.pitch_px) ** 2)[:, None]
    places = section.grid.centres_px(*np.nonzero(mask))
    found = (baselines.nearest, baselines.linear)
    return {name: method(section.xy_px, density, places) for name, method in zip(METHODS, found, strict=False)}


def _summary(scores: pd.DataFrame, n_superpixels: int, n_genes: int, seconds: dict[str, float], device: str) -> str:
    """What a user wants to know, as text of at most 80 columns."""
    gain = scores.loc[("counts", "sphistex"), 16.0] / scores.loc[("counts", "linear interpolation"), 16.0] - 1
    parts = [
        f"sphistex on simulated tissue: {n_superpixels:,} superpixels of 8 µm, {n_genes} genes",
        "",
        "Pearson r with the truth, mean over genes (1 is perfect), by width of the pixels compared",
        "",
        "With the truth as an instrument would measure it, noise included:",
        _table_text(scores.loc["counts"]),
        f"sphistex is {gain:+.0%} against linear interpolation at 16 µm.",
        "",
        "With the true expectation, free of measurement noise:",
        _table_text(scores.loc["expected"]),
        "Wall time:",
        *(f"  {step:<24}{value:7.1f} s" for step, value in seconds.items()),
        f"  {'all':<24}{sum(seconds.values()):7.1f} s",
        f"Peak memory: {_peak_gigabytes():.2f} GB; computed on {device}, Python {platform.python_version()}",
        "",
    ]
    return "\n".join(parts)


def _table_text(scores: pd.DataFrame) -> str:
    header = " " * 24 + "".join(f"{f'{scale:g} µm':>8}" for scale in scores.columns)
    lines = [f"  {method:<22}" + "".join(f"{r:8.3f}" for r in row) for method, row in scores.iterrows()]
    return "\n".join([header, *lines, ""])


def _peak_gigabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)  # bytes on macOS, kilobytes elsewhere
