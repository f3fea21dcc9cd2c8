"""The main job: H&E image and spots in, counts per superpixel out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from spatialdata import SpatialData

from sphistex import encoders
from sphistex._section import Section, resolve_section
from sphistex._store import add_element, check_free
from sphistex.encoders.base import resolve_device
from sphistex.nn import SuperResolver, parameters
from sphistex.pp.tissue import tissue_mask
from sphistex.settings import settings
from sphistex.tl._genes import choose_genes
from sphistex.tl._inputs import spots_on_tissue, tissue_of
from sphistex.tl._result import check_result_free
from sphistex.tl._trust import check_drop
from sphistex.tl.features import superpixel_features
from sphistex.tl.fit import check_seed, fit_section
from sphistex.tl.predict import held_lazily, predict_section


def super_resolve(
    sdata: SpatialData,
    *,
    genes: int | Sequence[str] | Literal["all"] | None = None,
    encoder: Any = "auto",
    weights: str | Path | None = None,
    preset: str = "default",
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
    features_key: str = "superpixel_features",
    tissue_key: str = "tissue",
    key_added: str = "superres",
    conserve_counts: bool = False,
    drop_genes: Literal["chance", "interpolation"] | None = None,
    lazy: bool | None = None,
    strict: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
    device: str | None = None,
    **fit_parameters: Any,
) -> SuperResolver:
    """Predict gene expression at 8 µm from an H&E image and Visium spots.

    Runs :func:`sphistex.pp.tissue_mask`, :func:`sphistex.tl.superpixel_features`, :func:`sphistex.tl.fit` and
    :func:`sphistex.tl.predict`; a mask or feature map that is already there is used. Where ``sdata`` lies on disk,
    what is made is written there as well.

    Parameters
    ----------
    sdata
        SpatialData with an H&E image (8-bit RGB), Visium or ST spots (circles) or bins of Visium HD (polygons) and a
        table of their raw counts, such as from ``spatialdata_io.visium``, ``spatialdata_io.visium_hd``,
        :func:`sphistex.io.from_spots` or :func:`sphistex.io.read_st`.
    genes
        Names of genes; or how many of the most variable ones; None for 1,000; or ``"all"`` that are seen in enough
        spots to have a pattern: in 2 % of them, or in 100 where that is less.
    encoder, weights, device
        Image encoder, file with its weights, and torch device; see :func:`sphistex.encoders.get`.
    preset
        ``"default"``, what measured best; or ``"paper"``, the published HISTEX configuration.
    image_key, shapes_key, table_key, coordinate_system
        Which elements; needed only where there are several candidates.
    mpp
        Microns per image pixel; by default from the spot pitch.
    spot_pitch_um
        Distance between neighbouring spots in µm, where it is neither recorded nor Visium's 100.
    features_key, tissue_key
        Names of the feature map and of the tissue mask; made where they do not exist.
    key_added
        Name of the result.
    conserve_counts
        Make each spot's superpixels add up to exactly what was measured, noise included.
    drop_genes
        Leave out genes that were predicted no better than by ``"chance"``, or also those that were predicted no better
        than by ``"interpolation"``, at spots that the model had not seen. By default they stay, with a warning.
    lazy
        Keep what counts are read from, and compute them when they are asked for, gene by gene; False computes all of
        them now. By default where they would take more than half of ``settings.memory_gb``, see :func:`predict`.
    strict
        Refuse counts that look normalised instead of warning.
    overwrite
        Replace an existing result.
    seed
        Seed of everything random; default: that of the settings.
    fit_parameters
        Changes to the preset, see :class:`sphistex.nn.FitParameters`.

    Returns
    -------
    The fitted model, which can be saved. Adds to ``sdata``:

    ``tables[key_added]``
        ``X`` (n_superpixels, n_genes) float32: expected counts of each 8 µm superpixel, not negative, on the scale of
        the spots' counts. ``obs``: ``region``, ``instance_id``, ``array_row``, ``array_col``, ``in_spot``;
        ``var``: the columns of the spots' table, and how far to trust each gene: ``image_share``, how much of its map
        is read from the image and not interpolated; ``held_out_pearson`` and ``held_out_interpolation``, r with the
        counts of spots that were left out while fitting; ``held_out_ceiling``, the r that their noise allows;
        ``explained_share`` of it; ``verdict``; ``trusted_scale_um``, the scale from which on more than half of what
        varies is signal (NaN: none; of a lazy result see :func:`trusted_scale`); see
        :func:`sphistex.metrics.explained` and :func:`confidence`. ``obsm["spatial"]``: centres (x, y) in
        full-resolution image pixels; ``uns["spatial"]``: thumbnail and scale factors; ``uns[key_added]``: how it was
        made, loss curves included.
    ``labels[key_added + "_labels"]``
        The raster that the table annotates: one pixel per superpixel, cropped to the tissue.
    ``images[key_added + "_latent"]``, ``tables[key_added + "_model"]``
        Of a lazy result: what its counts are read from, see :func:`open_genes`.
    ``images[features_key]``, ``labels[tissue_key]``
        Feature map and tissue mask, if they were not there.

    Raises
    ------
    KeyError, TypeError, ValueError
        If elements, genes or parameters cannot be used. ``sdata`` is then unchanged.

    References
    ----------
    Inferring Super-Resolved Gene Expression by Integrating Histology Images and Spatial Transcriptomics with HISTEX,
    MICCAI 2025.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> sdata.tables["superres"].n_vars
    20
    """
    chosen = parameters(preset, **fit_parameters)
    check_drop(drop_genes)
    seed = check_seed(seed)
    resolve_device(device or settings.device)
    section = resolve_section(
        sdata,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        mpp=mpp,
        spot_pitch_um=spot_pitch_um,
        strict=strict,
    )
    check_result_free(sdata, section, key_added, overwrite=overwrite)
    if features_key == section.image_key:
        raise ValueError(f"features_key={features_key!r} is the H&E image; choose another name for the feature map.")
    recorded = features_key in sdata.attrs.get("sphistex", {})
    check_free(sdata, "images", features_key, overwrite=overwrite or recorded)
    names = choose_genes(section.table, genes)
    model_encoder = encoders.get(encoder, weights=weights, device=device)
    _ensure_tissue(sdata, section, tissue_key)
    lazy = held_lazily(tissue_of(sdata, section, tissue_key), len(names), lazy, conserve_counts)
    superpixel_features(
        sdata,
        encoder=model_encoder,
        image_key=section.image_key,
        labels_key=tissue_key,
        mpp=section.mpp,
        key_added=features_key,
        overwrite=overwrite,
        device=device,
    )
    model = fit_section(
        sdata, section, names, chosen, features_key=features_key, tissue_key=tissue_key, seed=seed, device=device
    )
    predict_section(
        sdata,
        section,
        model,
        features_key=features_key,
        tissue_key=tissue_key,
        key_added=key_added,
        conserve_counts=conserve_counts,
        drop_genes=drop_genes,
        lazy=lazy,
        overwrite=overwrite,
    )
    return model


def _ensure_tissue(sdata: SpatialData, section: Section, tissue_key: str) -> None:
    """Make the tissue mask if there is none, once it is clear that enough spots lie on it."""
    if tissue_key in sdata.labels:
        spots_on_tissue(section, tissue_of(sdata, section, tissue_key))
        return
    check_free(sdata, "labels", tissue_key, overwrite=False)
    draft = SpatialData(
        images={section.image_key: sdata.images[section.image_key]},
        shapes={section.shapes_key: sdata.shapes[section.shapes_key]},
    )
    draft.attrs = sdata.attrs
    tissue_mask(
        draft,
        image_key=section.image_key,
        shapes_key=section.shapes_key,
        coordinate_system=section.coordinate_system,
        mpp=section.mpp,
        spot_pitch_um=section.pitch_um,
        key_added=tissue_key,
    )
    spots_on_tissue(section, tissue_of(draft, section, tissue_key))
    add_element(sdata, "labels", tissue_key, draft.labels[tissue_key])
