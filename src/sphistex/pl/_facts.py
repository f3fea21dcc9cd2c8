"""What there is to say of a result in words and numbers, and what to be warned of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

from sphistex._section import Section
from sphistex.metrics.explained import AS_CHANCE, AS_INTERPOLATION, BETTER
from sphistex.pl.validation import WAYS, scores_of

# Names of the encoders that are no pathology models.
_BUILT_IN = "efficientnet_lite0"
_COARSE_MPP = 1.0
_FEW_SPOTS = 100
_NAMED = 8

Facts = dict[str, str]


def of_input(table: AnnData, made: dict[str, Any], section: Section) -> Facts:
    """Image, spots and genes."""
    height, width = section.image.sizes["y"], section.image.sizes["x"]
    mm = section.mpp / 1000
    facts = {"Image": f"{section.image_key}: {width:,} × {height:,} px, {width * mm:.2f} × {height * mm:.2f} mm"}
    if section.has_spots:
        diameter_um = 2 * float(np.median(section.radius_px)) * section.mpp
        what = "spots" if section.outlines_px is None else "bins or polygons"
        totals = np.asarray(section.table.X.sum(1)).ravel()
        facts |= {
            "Spots": f"{section.shapes_key}: {len(section.xy_px):,} {what}, about {diameter_um:.0f} µm wide and "
            f"{section.pitch_um:.0f} µm apart",
            "Counts": f"{section.table_key}: {section.table.n_vars:,} genes, {np.median(totals):,.0f} counts in the "
            "median spot",
        }
    else:
        facts["Spots"] = "none: predicted from the image alone"
    return facts | {
        "Genes resolved": f"{table.n_vars:,}",
        "Scale": f"{section.mpp:.4g} µm per pixel; superpixels of {made['pitch_um']:g} µm",
    }


def of_tissue(table: AnnData, made: dict[str, Any], section: Section) -> Facts:
    """How much of the image is tissue."""
    area = table.n_obs * (float(made["pitch_um"]) / 1000) ** 2
    whole = section.image.sizes["y"] * section.image.sizes["x"] * (section.mpp / 1000) ** 2
    facts = {"Superpixels": f"{table.n_obs:,}, {area:.3g} mm²", "Share of the image": f"{min(area / whole, 1):.0%}"}
    if "in_spot" in table.obs:
        facts["Inside of spots"] = f"{table.obs['in_spot'].mean():.0%} of the superpixels"
    return facts


def of_features(sdata: SpatialData, made: dict[str, Any]) -> Facts:
    """What described the image."""
    noted = made["encoder"] | sdata.attrs.get("sphistex", {}).get(made["features_key"], {})
    names = {"encoder": "Encoder", "revision": "Revision", "dim": "Features", "halo_px": "Halo in px"}
    return _said({name: noted.get(entry) for entry, name in names.items()})


def of_fit(made: dict[str, Any]) -> Facts:
    """How the model was fitted."""
    best = np.atleast_1d(made["training"]["best_epoch"]) + 1
    facts: dict[str, Any] = {
        "Best epochs": f"{', '.join(map(str, best))} of {len(np.atleast_1d(made['training']['train_loss']))}",
        "Spots seen": made.get("n_spots"),
        "Spots left out": made.get("n_left_out"),
        "Sections": made.get("n_sections"),
        "Device": made.get("device"),
        "Seed": made.get("seed"),
        "Seconds of training": made.get("seconds"),
        "Counts conserved": "yes" if made.get("conserve_counts") else "no",
        "Versions": ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()),
    }
    return _said(facts)


def of_parameters(made: dict[str, Any]) -> Facts:
    """Parameters of the fit."""
    return _said(made["params"])


def of_validation(table: AnnData) -> pd.DataFrame:
    """One row for each way in which genes were judged, with medians over the genes."""
    rows = {}
    for prefix, what in WAYS.items():
        scores = scores_of(table.var, prefix)
        if scores is None or scores.empty:
            continue
        medians = scores[["pearson", "interpolation", "ceiling", "explained_share"]].astype(float).median()
        verdicts = scores["verdict"].value_counts()
        rows[what.capitalize()] = {
            "genes": len(scores),
            "median r": f"{medians['pearson']:.2f}",
            "of interpolation": f"{medians['interpolation']:.2f}",
            "noise ceiling": _number(medians["ceiling"]),
            "explained share": _number(medians["explained_share"]),
        } | {verdict: int(verdicts.get(verdict, 0)) for verdict in (BETTER, AS_INTERPOLATION, AS_CHANCE)}
    return pd.DataFrame.from_dict(rows, orient="index")


def of_genes(table: AnnData, genes: list[str]) -> pd.DataFrame:
    """What is known of some genes."""
    columns = {
        "verdict": "verdict",
        "held_out_pearson": "r, held out",
        "held_out_interpolation": "r of interpolation",
        "explained_share": "explained share",
        "trusted_scale_um": "trusted from, µm",
        "mean_count": "mean counts",
    }
    found = table.var.loc[genes, [name for name in columns if name in table.var]].rename(columns=columns)
    return pd.DataFrame({name: [_number(value) for value in found[name]] for name in found}, index=genes)


def warnings_of(sdata: SpatialData, key: str, table: AnnData, made: dict[str, Any], section: Section) -> Iterator[str]:
    """What the reader should know before trusting the result."""
    if sdata.attrs.get("sphistex", {}).get(key, {}).get("unfinished"):
        yield "The run that made this result, with those of other sections, did not come to its end."
    if made["encoder"].get("encoder") == _BUILT_IN:
        yield (
            f"The image was described by the built-in encoder {_BUILT_IN}, which was trained on photographs, not on "
            "histology: with UNI, predictions are usually better."
        )
    if section.mpp > _COARSE_MPP:
        yield f"The image has {section.mpp:.3g} µm per pixel, too coarse to show nuclei well; 0.5 is best."
    yield from _of_spots(made, section)
    yield from _of_training(made)
    yield from _of_trust(table, made)
    if "log1p" in table.uns:
        yield "X holds logarithms, not the counts that were predicted: maps and numbers below are of these."


def _of_spots(made: dict[str, Any], section: Section) -> Iterator[str]:
    if not section.has_spots:
        yield "There are no spots: everything is predicted from the image, on the scale of the model's own sections."
        return
    if made.get("predicted_spots"):
        yield "The spots' counts were themselves predicted from the image, and not measured."
    if len(section.xy_px) < _FEW_SPOTS:
        yield f"There are only {len(section.xy_px)} spots to learn from."
    values = section.table.X.data if sparse.issparse(section.table.X) else np.asarray(section.table.X)
    if (values % 1).any():
        yield f"The counts in {section.table_key!r} are not whole numbers: were they normalised?"


def _of_training(made: dict[str, Any]) -> Iterator[str]:
    """Whether losses were still falling; not where learning was slowed down to nothing, or nothing judged it."""
    epochs = len(np.atleast_1d(made["training"]["train_loss"]))
    judged = np.isfinite(np.atleast_1d(made["training"]["validation_loss"]).astype(float)).any()
    if made["params"].get("schedule", False) or not judged:
        return
    last = int((np.atleast_1d(made["training"]["best_epoch"]) == epochs - 1).sum())
    if last:
        yield f"{last} of the models were best in their last epoch, {epochs}: more epochs may fit better."


def _of_trust(table: AnnData, made: dict[str, Any]) -> Iterator[str]:
    if (why := made.get("calibration", {}).get("missing")) is not None:
        yield f"It is not known how certain the result is, and there are no intervals: {why}."
    for verdict, what in ((AS_CHANCE, "chance"), (AS_INTERPOLATION, "interpolation of the spots")):
        poor = list(table.var_names[table.var["verdict"] == verdict]) if "verdict" in table.var else []
        if poor:
            yield (
                f"{len(poor)} of {table.n_vars} genes are predicted no better than by {what} where the model had not "
                f"looked: {_some(poor)}."
            )
    if "trusted_scale_um" in table.var:
        never = list(table.var_names[table.var["trusted_scale_um"].isna()])
        if never:
            yield f"{len(never)} of {table.n_vars} genes cannot be trusted at any scale up to 64 µm: {_some(never)}."


def _said(values: dict[str, Any]) -> Facts:
    """Those that are known, as they are written."""
    known = {name: _written(value) for name, value in values.items() if value is not None}
    return {name: text for name, text in known.items() if text}


def _written(value: Any) -> str:
    if isinstance(value, np.ndarray | list | tuple):
        return ", ".join(map(str, np.asarray(value).tolist()))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    """Two digits of a number, a dash for what is not known."""
    if isinstance(value, str):
        return value
    return "–" if pd.isna(value) else f"{float(value):.2g}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
