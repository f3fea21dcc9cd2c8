"""The main job: H&E image and spots in, counts per superpixel out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from spatialdata import SpatialData

from sphistex import encoders
from sphistex._store import add_element, check_free
from sphistex.encoders.base import resolve_device
from sphistex.nn import SuperResolver, parameters
from sphistex.pp.tissue import tissue_mask
from sphistex.settings import settings
from sphistex.tl._inputs import spots_on_tissue, tissue_of
from sphistex.tl._result import check_result_free, finish_result
from sphistex.tl._sections import Placed, about, common_genes, resolve_sections
from sphistex.tl._trust import check_drop
from sphistex.tl.features import superpixel_features
from sphistex.tl.fit import check_seed, fitted
from sphistex.tl.predict import held_lazily, predict_section


def super_resolve(
    sdata: SpatialData | Sequence[SpatialData],
    *,
    sections: str | Mapping[str, Mapping[str, Any]] | None = None,
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
    what is made is written there as well. After an interruption, a kill as well, the same call goes on where it was:
    with the tiles of the feature map, the epochs of the fit, or the prediction, and comes to the same result.

    Parameters
    ----------
    sdata
        SpatialData with an H&E image (8-bit RGB), Visium or ST spots (circles) or bins of Visium HD (polygons) and a
        table of their raw counts, such as from ``spatialdata_io.visium``, ``spatialdata_io.visium_hd``,
        :func:`sphistex.io.from_spots` or :func:`sphistex.io.read_st`. A list of such objects gets one model, fitted to
        all of them, and a result in each.
    sections
        Several sections of one object, for one model of all: the elements of each by its name, as in
        ``{"A": {"image_key": "image_A", "shapes_key": "spots_A"}, "B": ...}`` (also ``table_key``,
        ``coordinate_system``, ``mpp`` and ``spot_pitch_um``); or the column of the tables' ``obs`` that holds the
        names, where each section has shapes of its own. What is made of a section is called ``<key_added>_<section>``,
        ``<features_key>_<section>`` and ``<tissue_key>_<section>``.
    genes
        Names of genes; or how many of the most variable ones, over all sections; None for 1,000; or ``"all"`` that are
        seen in enough spots to have a pattern: in 2 % of them, or in 100 where that is less.
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
        them now. By default where there is no room for them in ``settings.memory_gb``, see :func:`predict`.
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
        If elements, genes or parameters cannot be used, or sections do not go together. All are then unchanged.

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
    elements = {
        "image_key": image_key,
        "shapes_key": shapes_key,
        "table_key": table_key,
        "coordinate_system": coordinate_system,
        "mpp": mpp,
        "spot_pitch_um": spot_pitch_um,
    }
    names = {"features_key": features_key, "tissue_key": tissue_key, "key_added": key_added}
    placed = resolve_sections(sdata, sections, elements, **names, strict=strict)
    for one in placed:
        with about(one.called):
            _check_room(one, overwrite=overwrite)
    chosen_genes = common_genes(placed, genes)
    model_encoder = encoders.get(encoder, weights=weights, device=device)
    for one in placed:
        with about(one.called):
            _check_features(one, model_encoder, overwrite=overwrite)
    _ensure_tissue(placed)
    for one in placed:  # refused before the work begins
        held_lazily(tissue_of(one.sdata, one.section, one.tissue_key), len(chosen_genes), lazy, conserve_counts)
    for one in placed:
        superpixel_features(
            one.sdata,
            encoder=model_encoder,
            image_key=one.section.image_key,
            labels_key=one.tissue_key,
            mpp=one.section.mpp,
            key_added=one.features_key,
            overwrite=overwrite,
            device=device,
        )
    with fitted(placed, chosen_genes, chosen, seed=seed, device=device) as model:
        for one in placed:
            predict_section(
                one.sdata,
                one.section,
                model,
                features_key=one.features_key,
                tissue_key=one.tissue_key,
                key_added=one.key_added,
                conserve_counts=conserve_counts,
                drop_genes=drop_genes,
                lazy=lazy,
                overwrite=overwrite,
                unfinished=len(placed) > 1,
            )
    if len(placed) > 1:
        for one in placed:
            finish_result(one.sdata, one.key_added)
    return model


def _check_room(one: Placed, *, overwrite: bool) -> None:
    """Refuse names under which nothing can be added."""
    check_result_free(one.sdata, one.section, one.key_added, overwrite=overwrite)
    if one.features_key == one.section.image_key:
        raise ValueError(
            f"features_key={one.features_key!r} is the H&E image; choose another name for the feature map."
        )
    recorded = one.features_key in one.sdata.attrs.get("sphistex", {})
    check_free(one.sdata, "images", one.features_key, overwrite=overwrite or recorded)


def _check_features(one: Placed, encoder: encoders.Encoder, *, overwrite: bool) -> None:
    """Refuse a feature map of another encoder before those of the other sections are made."""
    made = one.sdata.attrs.get("sphistex", {}).get(one.features_key)
    if made and not overwrite and (made.get("encoder"), made.get("revision")) != (encoder.name, encoder.revision):
        raise ValueError(
            f"features_key={one.features_key!r} exists in sdata.images and was made with "
            f"encoder={made.get('encoder')!r}, not {encoder.name!r}; choose another name, or pass overwrite=True to "
            "replace it"
        )


def _ensure_tissue(placed: Sequence[Placed]) -> None:
    """Make the tissue masks that there are not, once it is clear that enough spots of every section lie on them."""
    made = []
    for one in placed:
        with about(one.called):
            if one.tissue_key in one.sdata.labels:
                spots_on_tissue(one.section, tissue_of(one.sdata, one.section, one.tissue_key))
            else:
                made.append((one, _draft_of_tissue(one)))
    for one, mask in made:
        add_element(one.sdata, "labels", one.tissue_key, mask)


def _draft_of_tissue(one: Placed) -> Any:
    """The tissue mask of a section, which is not changed."""
    section, tissue_key = one.section, one.tissue_key
    check_free(one.sdata, "labels", tissue_key, overwrite=False)
    draft = SpatialData(
        images={section.image_key: one.sdata.images[section.image_key]},
        shapes={section.shapes_key: one.sdata.shapes[section.shapes_key]},
    )
    draft.attrs = one.sdata.attrs
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
    return draft.labels[tissue_key]
