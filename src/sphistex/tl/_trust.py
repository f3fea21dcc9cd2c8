"""What a result says about how far each of its genes can be trusted."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from sphistex.calibration import MIN_SPOTS, Calibration
from sphistex.metrics.explained import AS_CHANCE, AS_INTERPOLATION
from sphistex.metrics.lattice import coarsening
from sphistex.nn import Inputs, SuperResolver

FACTORS = (1, 2, 4, 8)
DROPS = (None, "chance", "interpolation")
# A gene is trusted from the scale on at which no more than half of what varies is error.
_TRUSTED = 0.5
_NAMED = 8
_GENES_AT_ONCE = 64
_PREFIX = "held_out_"
_ELSEWHERE = "the model was fitted to another section"
_NO_SPOTS = "there are no spots that could tell, only an image"


def check_drop(drop_genes: object) -> None:
    """Refuse what cannot be dropped."""
    if drop_genes not in DROPS:
        raise ValueError(f'drop_genes={drop_genes!r} must be "chance", "interpolation" or None')


def judged_on(section: Inputs, model: SuperResolver) -> SuperResolver:
    """The model for a section, without what it knows of its own sections where this is another, or only an image."""
    if section.identity in model.sections:
        return model.at(section)
    if len(section.spots):
        return replace(model, scores=None, calibration=None, info=model.info | {"unjudged": _ELSEWHERE})
    alone = np.ones(len(model.genes))
    return replace(model, scores=None, calibration=None, image_share=alone, info=model.info | {"unjudged": _NO_SPOTS})


def gene_table(model: SuperResolver, counts: NDArray[np.float32] | None, mask: NDArray[np.bool_]) -> pd.DataFrame:
    """Columns for ``var``: share of the image, scores at left-out spots, error of the predictions, trusted scale.

    Parameters
    ----------
    model
        What the counts were predicted with.
    counts
        Counts of the tissue superpixels (n_superpixels, n_genes); None where they are lazy: the trusted scale needs
        all of them, and is left out.
    mask
        The tissue (rows, columns).
    """
    table = pd.DataFrame({"image_share": model.image_share}, index=pd.Index(model.genes))
    if model.scores is not None:
        names = {"verdict": "verdict", "explained_share": "explained_share"}
        table = table.join(model.scores.rename(columns=lambda name: names.get(name, _PREFIX + name)))
        table["verdict"] = pd.Categorical(table["verdict"])
    if model.calibration is not None:
        table["mean_count"], table["error_variance"] = model.calibration.mean, model.calibration.variance
        if counts is not None:
            table["trusted_scale_um"] = trusted_scales(model.calibration, counts, mask)
    return table


def trusted_scales(
    calibration: Calibration, counts: NDArray[np.float32] | da.Array, mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The finest scale in µm from which on each gene can be trusted; NaN where there is none (n_genes,).

    Of lazy counts a few genes at a time are computed.
    """
    coarse = {factor: coarsening(mask, factor) for factor in sorted(FACTORS, reverse=True)}
    found: list[NDArray[np.float64]] = []
    n_genes = counts.shape[1]
    for first in range(0, n_genes, _GENES_AT_ONCE):
        part = calibration.take(np.arange(first, min(first + _GENES_AT_ONCE, n_genes)))
        values = np.asarray(counts[:, first : first + _GENES_AT_ONCE])
        trusted, good = np.full(len(part.mean), np.nan), np.ones(len(part.mean), dtype=bool)
        for factor, matrix in coarse.items():
            if matrix.shape[0] < 2:  # wider than the tissue
                continue
            sums, area = matrix @ values, np.asarray(matrix.sum(1)).ravel()
            good &= part.reliability(sums, area) >= _TRUSTED  # and at all coarser scales
            trusted[good] = factor * calibration.pitch_um
        found.append(trusted)
    return np.concatenate(found)


def record_of(model: SuperResolver) -> dict[str, Any]:
    """What of a model's calibration is the same for all genes, for ``uns``; or why there is none."""
    calibration = model.calibration
    if calibration is None:
        return {"missing": _why_unjudged(model)}
    return {
        "side_um": calibration.side_um,
        "pitch_um": calibration.pitch_um,
        "coverage": calibration.coverage,
        "n_spots": calibration.n_spots,
    }


def _why_unjudged(model: SuperResolver) -> str:
    """Why a model has no calibration."""
    if "unjudged" in model.info:
        return str(model.info["unjudged"])
    if not model.parameters.holdout:
        return "no spots were left out while fitting (holdout=0)"
    if not (n_left_out := int(model.info.get("n_left_out", 0))):
        return "spots that are left out cannot be judged where they are enhanced, or bins that cover everything"
    return f"{n_left_out} spots were left out while fitting, and {MIN_SPOTS} are needed"


def made_how(table: AnnData, key: str) -> dict[str, Any]:
    """How a result was made, whatever name it is stored under now.

    Raises
    ------
    ValueError
        If the table is no result.
    """
    for made in table.uns.values():
        if isinstance(made, dict) and {"pitch_um", "mpp"} <= set(made):
            return made
    raise ValueError(f"key={key!r} is a table, but not a result of sphistex.tl.super_resolve")


def calibration_of(table: AnnData, key: str) -> Calibration:
    """The calibration that a result holds.

    Raises
    ------
    ValueError
        If it holds none.
    """
    record = made_how(table, key).get("calibration")
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
                f"drop_genes={drop_genes!r}: {_why_unjudged(model)}, so that no gene can be judged and none is "
                "dropped; sphistex.tl.validate judges them.",
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
