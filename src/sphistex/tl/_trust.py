"""What a result says about how far each of its genes can be trusted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from sphistex.calibration import MIN_SPOTS, Calibration
from sphistex.metrics import coarsen
from sphistex.metrics.explained import AS_CHANCE, AS_INTERPOLATION
from sphistex.metrics.lattice import blocks
from sphistex.nn import SuperResolver

FACTORS = (1, 2, 4, 8)
DROPS = (None, "chance", "interpolation")
# A gene is trusted from the scale on at which no more than half of what varies is error.
_TRUSTED = 0.5
_NAMED = 8
_PREFIX = "held_out_"


def check_drop(drop_genes: object) -> None:
    """Refuse what cannot be dropped."""
    if drop_genes not in DROPS:
        raise ValueError(f'drop_genes={drop_genes!r} must be "chance", "interpolation" or None')


def gene_table(model: SuperResolver, counts: NDArray[np.float32], mask: NDArray[np.bool_]) -> pd.DataFrame:
    """Columns for ``var``: scores at left-out spots, mean and error of the predictions, and the trusted scale.

    Parameters
    ----------
    model
        What the counts were predicted with.
    counts
        Counts of the tissue superpixels (n_superpixels, n_genes).
    mask
        The tissue (rows, columns).
    """
    table = pd.DataFrame(index=pd.Index(model.genes))
    if model.scores is not None:
        names = {"verdict": "verdict", "explained_share": "explained_share"}
        table = model.scores.rename(columns=lambda name: names.get(name, _PREFIX + name))
        table["verdict"] = pd.Categorical(table["verdict"])
    if model.calibration is not None:
        table["mean_count"], table["error_variance"] = model.calibration.mean, model.calibration.variance
        table["trusted_scale_um"] = _trusted_scale(model.calibration, counts, mask, model.genes)
    return table


def _trusted_scale(
    calibration: Calibration, counts: NDArray[np.float32], mask: NDArray[np.bool_], genes: list[str]
) -> NDArray[np.float64]:
    """The finest scale in µm from which on each gene can be trusted; NaN where there is none (n_genes,)."""
    found = []
    for first, (_, (maps,)) in zip(range(0, len(genes), 32), blocks(mask, genes, counts), strict=True):
        part = calibration.take(np.arange(first, first + maps.shape[-1]))
        trusted = np.full(maps.shape[-1], np.nan)
        for factor in sorted(FACTORS, reverse=True):
            sums, kept = coarsen(maps, mask, factor)
            if len(sums) < 2:
                continue
            area = coarsen(mask.astype(float), mask, factor)[0].ravel()
            good = part.reliability(sums, area) >= _TRUSTED
            scale_um = factor * calibration.pitch_um
            coarser = np.isnan(trusted) if factor == max(FACTORS) else trusted <= 2 * scale_um
            trusted = np.where(good & coarser, scale_um, trusted)
        found.append(trusted)
    return np.concatenate(found)


def record_of(calibration: Calibration | None, n_left_out: int) -> dict[str, Any]:
    """What of a calibration is the same for all genes, for ``uns``; or why there is none."""
    if calibration is None:
        return {"missing": f"{n_left_out} spots were left out while fitting, and {MIN_SPOTS} are needed"}
    return {
        "side_um": calibration.side_um,
        "pitch_um": calibration.pitch_um,
        "coverage": calibration.coverage,
        "n_spots": calibration.n_spots,
    }


def calibration_of(table: AnnData, key: str) -> Calibration:
    """The calibration that a result holds.

    Raises
    ------
    ValueError
        If it holds none.
    """
    record = table.uns.get(key, {}).get("calibration")
    if record is None:
        raise ValueError(f"key={key!r} was made without a calibration: make it again with sphistex.tl.super_resolve")
    if "missing" in record:
        raise ValueError(f"key={key!r} has no intervals: {record['missing']}")
    return Calibration(
        table.var["mean_count"].to_numpy(float),
        table.var["error_variance"].to_numpy(float),
        float(record["side_um"]),
        float(record["pitch_um"]),
        np.asarray(record["coverage"], dtype=float),
        int(record["n_spots"]),
    )


def kept_genes(model: SuperResolver, drop_genes: str | None) -> NDArray[np.bool_]:
    """Which genes (n_genes,) stay in the result; warns of those that say nothing and stay.

    Raises
    ------
    ValueError
        If none would stay.
    """
    if model.scores is None:
        if drop_genes is not None:
            warnings.warn(
                f"drop_genes={drop_genes!r}: this model left no spots out while fitting, so that no gene can be judged "
                "and none is dropped; sphistex.tl.validate judges them.",
                stacklevel=2,
            )
        return np.ones(len(model.genes), dtype=bool)
    verdict = model.scores["verdict"].to_numpy()
    chance, interpolation = verdict == AS_CHANCE, verdict == AS_INTERPOLATION
    kept = ~(chance & (drop_genes is not None)) & ~(interpolation & (drop_genes == "interpolation"))
    if not kept.any():
        raise ValueError(f"drop_genes={drop_genes!r} would drop all {len(kept)} genes: none is predicted any better")
    names = np.asarray(model.genes)
    for bad, what in ((chance & kept, "chance"), (interpolation & kept, "interpolation")):
        if bad.any():
            warnings.warn(
                f"{bad.sum()} of {len(bad)} genes are predicted no better than by {what} at spots that the model had "
                f"not seen: {_some(names[bad])}. var['verdict'] says so, drop_genes={what!r} leaves them out.",
                stacklevel=2,
            )
    return kept


def _some(names: NDArray) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
