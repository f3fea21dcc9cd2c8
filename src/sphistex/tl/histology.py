"""Expression and regions from the image alone: fitted to measured sections, predicted for any (HiST)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.models import TableModel
from tqdm.auto import tqdm
from xarray import DataArray

from sphistex._scale import lattice_of
from sphistex._section import has_spots, resolve_spots
from sphistex._store import add_element, check_apart, check_free, record
from sphistex._thumbnail import thumbnail
from sphistex.encoders.base import Encoder, resolve_device
from sphistex.nn.histology import HistologyModel, LatticeSection, histology_parameters
from sphistex.settings import settings
from sphistex.tl._expression import PER_SPOT
from sphistex.tl._measured import (
    Measured,
    check_alike,
    check_planned,
    chosen_genes,
    classes_of,
    features_alike,
    gather,
    layout_of,
    warn_if_single,
)
from sphistex.tl._positions import find_positions, region_of
from sphistex.tl._sections import Placed, about, resolve_sections
from sphistex.tl.fit import check_seed
from sphistex.tl.lattice_features import (
    SCALES,
    check_scales,
    check_versions,
    encoder_of_lattice,
    lattice_features,
)


def fit_histology(
    sdata: SpatialData | Sequence[SpatialData],
    *,
    genes: int | Sequence[str] | None = None,
    regions_key: str | None = None,
    encoder: Any = "auto",
    weights: str | Path | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
    scales: Sequence[int] = SCALES,
    stain_versions: int = 0,
    features_key: str = "lattice_features",
    tissue_key: str = "tissue",
    seed: int | None = None,
    device: str | None = None,
    **parameters: Any,
) -> HistologyModel:
    """Learn from measured sections what their H&E images say of expression and regions.

    Parameters
    ----------
    sdata
        Measured sections: SpatialData with an H&E image, spots and raw counts each. Lattice features that are there
        are used, and otherwise made (:func:`lattice_features`).
    genes
        Names of genes; or how many of the most variable ones among those seen in a fifth of the spots; None for 200.
    regions_key
        Column of the counts' ``obs`` with the region of each spot, such as a pathologist's; missing values are left
        out. None: no regions are learnt.
    encoder, weights, scales, stain_versions
        How lattice features are made where there are none; see :func:`lattice_features`.
    image_key, shapes_key, table_key, mpp, spot_pitch_um
        As in :func:`super_resolve`, for all sections.
    features_key, tissue_key
        Names of the lattice features and of the tissue masks.
    seed
        Seed of everything random; by default that of the settings.
    device
        Torch device; by default that of the settings.
    parameters
        Changes to :class:`HistologyParameters`.

    Returns
    -------
    The model, for :func:`predict_histology`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If sections cannot be used or do not go together, a region column has a single class, or a parameter makes no
        sense; before any long work.

    References
    ----------
    HiST (Advanced Science 2026).

    Examples
    --------
    >>> import sphistex as sx
    >>> sections = [sx.datasets.simulate(size_um=700, n_genes=20, seed=seed) for seed in (0, 1)]
    >>> model = sx.tl.fit_histology(sections, genes=10, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> sx.tl.predict_histology(sections[1], model)
    >>> sections[1].tables["histology"].n_vars
    10
    """
    chosen = histology_parameters(**parameters)
    seed = check_seed(seed)
    where = resolve_device(device or settings.device)
    elements: dict[str, Any] = {"image_key": image_key, "shapes_key": shapes_key, "table_key": table_key, "mpp": mpp}
    elements["spot_pitch_um"] = spot_pitch_um
    placed = resolve_sections(sdata, None, elements, features_key=features_key, tissue_key=tissue_key, strict=False)
    measured = measured_sections(
        placed,
        genes,
        regions_key,
        encoder=encoder,
        weights=weights,
        scales=scales,
        stain_versions=stain_versions,
        features_key=features_key,
        tissue_key=tissue_key,
        device=device,
    )
    warn_if_single(len(placed))
    with tqdm(total=chosen.epochs, desc="training", unit="epoch", disable=not settings.progress) as bar:
        model = HistologyModel.fit(
            measured.sections,
            measured.genes,
            measured.classes,
            chosen,
            seed=seed,
            device=where,
            on_epoch=lambda epoch, loss: bar.update(),
        )
    model.features = measured.features
    model.info["depth"] = measured.depth
    return model


def measured_sections(
    placed: Sequence[Placed],
    genes: int | Sequence[str] | None,
    regions_key: str | None,
    *,
    encoder: Any,
    weights: str | Path | None,
    scales: Sequence[int],
    stain_versions: int,
    features_key: str,
    tissue_key: str,
    device: str | None,
) -> Measured:
    """Arrays of sections that have been found; lattice features are made where there are none.

    Whether all of them go together is checked before the first are made, which may take hours.
    """
    check_scales(scales)
    check_versions(stain_versions)
    names, classes = chosen_genes(placed, genes), classes_of(placed, regions_key)
    lacking = [one for one in placed if features_key not in one.sdata.tables]
    if lacking:
        encoder, weights = encoder_of_lattice(encoder, weights, device), None
    places = [_elements_of(one, tissue_key) for one in lacking]
    check_planned(
        placed, features_key, [_planned(one, how, encoder, scales) for one, how in zip(lacking, places, strict=True)]
    )
    for one, how in zip(lacking, places, strict=True):
        with about(one.called):
            lattice_features(
                one.sdata,
                encoder=encoder,
                weights=weights,
                **how,
                scales=scales,
                stain_versions=stain_versions,
                key_added=features_key,
                device=device,
            )
    return gather(placed, features_key, names, regions_key, classes)


def _elements_of(one: Placed, tissue_key: str) -> dict[str, Any]:
    """Where lattice features of a section are made."""
    return {
        "image_key": one.section.image_key,
        "shapes_key": one.section.shapes_key,
        "table_key": one.section.table_key,
        "mpp": one.section.mpp,
        "spot_pitch_um": one.section.pitch_um,
        "tissue_key": tissue_key,
    }


def _planned(one: Placed, how: dict[str, Any], encoder: Encoder, scales: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """How a section is called, and how its features will be made."""
    with about(one.called):
        positions = find_positions(one.sdata, **how)
    lattice = {"kind": positions.kind, "pitch_um": positions.pitch_um}
    made = {"encoder": encoder.name, "revision": encoder.revision, "scales": list(scales), "lattice": lattice}
    return one.called, made


def predict_histology(
    sdata: SpatialData,
    model: HistologyModel,
    *,
    encoder: Any = None,
    weights: str | Path | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    mpp: float | None = None,
    features_key: str = "lattice_features",
    tissue_key: str = "tissue",
    key_added: str = "histology",
    overwrite: bool = False,
    device: str | None = None,
) -> None:
    """Predict expression and regions of a section from its H&E image.

    Parameters
    ----------
    sdata
        A section with an image. Its lattice features are used if they are there; otherwise they are made as the
        model's were: at its spots, or on a lattice like that of the model's sections.
    model
        From :func:`fit_histology` or :meth:`HistologyModel.load`.
    encoder, weights
        The model's encoder, where it is none that :func:`sphistex.encoders.get` knows by its name.
    image_key, shapes_key, table_key, mpp, tissue_key
        As in :func:`lattice_features`.
    features_key
        Name of the lattice features.
    key_added
        Name of the new table.
    overwrite
        Replace a table of that name.
    device
        Torch device; by default that of the settings.

    Returns
    -------
    Adds ``sdata.tables[key_added]``, which annotates the same shapes as the features: ``X`` expected log-normalised
    expression, log(1 + counts in 10,000), (n_positions, n_genes) float32; ``layers["counts"]`` the same as counts at
    the depth of the model's sections, which :func:`super_resolve` takes; where regions were learnt,
    ``obs["predicted_region"]`` and ``obsm["region_probabilities"]``; ``obsm["spatial"]`` and ``uns["spatial"]`` as of
    Visium; ``uns[key_added]`` how it was made.

    Raises
    ------
    KeyError, ValueError
        If the features were made differently from the model's, elements cannot be used, or ``key_added`` exists.

    Examples
    --------
    See :func:`fit_histology`.
    """
    check_key(sdata, key_added, features_key, tissue_key, overwrite=overwrite)
    where = resolve_device(device or settings.device)
    if features_key not in sdata.tables:
        made = model.features
        of_model = encoder_of(model, encoder, weights, device)
        elements: dict[str, Any] = {"image_key": image_key, "shapes_key": shapes_key, "mpp": mpp}
        lattice_features(
            sdata,
            encoder=of_model,
            **elements,
            table_key=table_key,
            tissue_key=tissue_key,
            pitch_um=made["lattice"]["pitch_um"],
            diameter_um=made["lattice"]["diameter_um"],
            lattice=None if _has_spots_like(sdata, made["lattice"], elements) else made["lattice"]["kind"],
            scales=made["scales"],
            key_added=features_key,
            device=device,
        )
    found = features_alike([(sdata, "")], features_key)
    check_alike(model.features, found, "the model", "this section")
    table = sdata.tables[features_key]
    model.module.to(where)
    predicted = model.predict(LatticeSection(layout_of(table, features_key), np.asarray(table.X, dtype=np.float32)))
    result = _table(sdata, table, model, predicted.expression, features_key, key_added)
    if model.classes:
        probabilities = pd.DataFrame(predicted.probabilities, index=result.obs_names, columns=model.classes)
        result.obsm["region_probabilities"] = probabilities
        result.obs["predicted_region"] = pd.Categorical(probabilities.idxmax(axis=1), categories=model.classes)
    record(sdata, key_added, {"features_key": features_key})
    add_element(sdata, "tables", key_added, result, overwrite=overwrite)


def check_key(
    sdata: SpatialData,
    key_added: str,
    features_key: str = "lattice_features",
    tissue_key: str = "tissue",
    *,
    overwrite: bool = False,
) -> None:
    """Raise a ValueError or TypeError if the table of predictions cannot have that name."""
    check_free(sdata, "tables", key_added, overwrite=overwrite)
    check_apart(key_added, [features_key, region_of(features_key), tissue_key])


def encoder_of(
    model: HistologyModel, encoder: Any = None, weights: str | Path | None = None, device: str | None = None
) -> Encoder:
    """The encoder of a model's features, loaded; a ValueError if ``encoder`` or ``weights`` are those of another."""
    made = model.features
    found = encoder_of_lattice(made["encoder"] if encoder is None else encoder, weights, device)
    planned = made | {"encoder": found.name, "revision": found.revision}
    check_alike(made, planned, "the model", "this section, as they would be made,")
    return found


def _has_spots_like(sdata: SpatialData, lattice: dict[str, Any], elements: dict[str, Any]) -> bool:
    """Whether the section's own spots lie as the model's do."""
    if not has_spots(sdata):
        return False
    spots = resolve_spots(sdata, **elements)
    return lattice_of(spots.xy_px).kind == lattice["kind"] and abs(spots.pitch_um / lattice["pitch_um"] - 1) < 0.1


def _table(
    sdata: SpatialData, features: ad.AnnData, model: HistologyModel, expression: Any, features_key: str, key_added: str
) -> ad.AnnData:
    made = features.uns[features_key]
    region = str(features.obs["region"].iloc[0])
    table = ad.AnnData(
        expression,
        obs=features.obs[["region", "instance_id", "array_row", "array_col"]].copy(),
        var=pd.DataFrame(index=model.genes),
        layers={"counts": np.expm1(expression) * np.float32(model.info.get("depth", PER_SPOT) / PER_SPOT)},
        obsm={"spatial": np.asarray(features.obsm["spatial"])},
    )
    element = sdata.images[made["image_key"]]
    levels = [element] if isinstance(element, DataArray) else list(get_pyramid_levels(element))
    table.uns["spatial"] = {key_added: thumbnail(levels, made["lattice"]["diameter_um"] / made["mpp"])}
    info = {name: value for name, value in model.info.items() if name != "train_loss"}
    table.uns[key_added] = {
        **info,
        "predicted": True,
        "features": {"features_key": features_key, **model.features},
        "lattice": model.features["lattice"],
        "image_key": made["image_key"],
        "mpp": float(made["mpp"]),
        "train_loss": np.asarray(model.info["train_loss"]),
    }
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")
