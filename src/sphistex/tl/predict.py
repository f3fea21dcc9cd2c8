"""Apply a fitted model: the high-resolution table and its labels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex._section import Section, image_alone, is_image_alone, resolve_section
from sphistex.nn import Inputs, SuperResolver
from sphistex.settings import settings
from sphistex.tl._genes import check_genes
from sphistex.tl._inputs import encoder_of, gather_inputs
from sphistex.tl._result import add_result, check_result_free
from sphistex.tl._trust import check_drop, judged_on, kept_genes

# Spots of a lattice do not share superpixels, or hardly: sharing counts out converges at once.
_MAX_ROUNDS = 100


def predict(
    sdata: SpatialData,
    model: SuperResolver,
    *,
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
    overwrite: bool = False,
) -> None:
    """Predict the counts of every tissue superpixel and add them as a table with its labels.

    A section of which there is only the image is predicted from its features alone, on the scale of the sections that
    the model was fitted to: nothing tells how many counts would be taken there.

    Parameters
    ----------
    sdata
        A section that the model was fitted to; another of the same tissue, with the same genes and features made the
        same way; or one with features and no spots. How far its genes can be trusted is known of the sections that it
        was fitted to, and said of no other.
    model
        From :func:`sphistex.tl.fit` or :meth:`sphistex.nn.SuperResolver.load`.
    image_key, shapes_key, table_key, coordinate_system, mpp, spot_pitch_um, features_key, tissue_key
        As in :func:`sphistex.tl.fit`. Without spots, ``mpp`` is by default that of the feature map.
    key_added
        Name of the new table; its labels are called ``<key_added>_labels``.
    conserve_counts
        Scale each gene inside each spot so that the spot's superpixels, weighted by their share of area in the spot,
        add up to exactly what was measured, noise included.
    drop_genes
        Leave out genes that were predicted no better than by ``"chance"``, or also those that were predicted no better
        than by ``"interpolation"``, at spots that the model had not seen. By default they stay, with a warning.
    overwrite
        Replace an existing result.

    Returns
    -------
    Adds ``sdata.tables[key_added]`` and ``sdata.labels[key_added + "_labels"]``; see
    :func:`sphistex.tl.super_resolve` for what they hold. ``uns[key_added]["spots"]`` says whether there were any.

    Raises
    ------
    KeyError, ValueError
        If the section lacks genes of the model, all of them would be dropped, its features were made by another
        encoder, elements cannot be used, ``key_added`` exists, or there are no spots and the model cannot do without.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0")
    >>> model = sx.tl.fit(sdata, genes=10, epochs=2, n_models=1)
    >>> sx.tl.predict(sdata, model)
    >>> sdata.tables["superres"].n_vars
    10
    """
    check_drop(drop_genes)
    if is_image_alone(sdata) and shapes_key is None and table_key is None:
        _check_without_spots(model, conserve_counts)
        section = _image_alone(sdata, model, image_key, mpp, features_key)
    else:
        section = resolve_section(
            sdata,
            image_key=image_key,
            shapes_key=shapes_key,
            table_key=table_key,
            coordinate_system=coordinate_system,
            mpp=mpp,
            spot_pitch_um=spot_pitch_um,
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
        overwrite=overwrite,
    )


def predict_section(
    sdata: SpatialData,
    section: Section,
    model: SuperResolver,
    *,
    features_key: str,
    tissue_key: str,
    key_added: str,
    conserve_counts: bool,
    drop_genes: str | None,
    overwrite: bool,
) -> None:
    """Predict a section that has been resolved and checked."""
    check_result_free(sdata, section, key_added, overwrite=overwrite)
    _check_fits(sdata, section, model, features_key)
    inputs = gather_inputs(
        sdata, section, model.genes, features_key=features_key, tissue_key=tissue_key, context=model.parameters.context
    )
    model = judged_on(inputs, model)
    kept = kept_genes(model, drop_genes)
    counts = _predicted(model, inputs)
    if conserve_counts:
        share_out(counts, inputs.bags.weights[:, inputs.features.mask.ravel()].tocsr(), inputs.spots.counts)
    add_result(
        sdata,
        section,
        model,
        counts,
        inputs.features.mask,
        kept,
        features_key=features_key,
        tissue_key=tissue_key,
        conserve_counts=conserve_counts,
        key_added=key_added,
        overwrite=overwrite,
    )


def _check_without_spots(model: SuperResolver, conserve_counts: bool) -> None:
    """Refuse what needs spots."""
    if conserve_counts:
        raise ValueError("conserve_counts=True: there are no spots whose counts could be conserved, only an image")
    parameters = model.parameters
    if parameters.layers and not (parameters.spotless and parameters.thinned):
        raise ValueError(
            "there are no spots (circles or bins of Visium HD) in sdata.shapes, and the model was fitted with "
            f"spotless={parameters.spotless:g}, thinned={parameters.thinned}, so that it cannot do without: "
            "fit it with spotless=0.05, thinned=True"
        )


def _image_alone(
    sdata: SpatialData, model: SuperResolver, image_key: str | None, mpp: float | None, features_key: str
) -> Section:
    """The image at the given scale, or that from which the feature map was made."""
    made = sdata.attrs.get("sphistex", {}).get(features_key, {})
    mpp = made.get("mpp") if mpp is None else mpp
    if mpp is None:
        raise ValueError("mpp=None, and there are no spots that tell the scale: pass mpp=, the microns per image pixel")
    image_key = made.get("image_key") if image_key is None else image_key
    return image_alone(sdata, model.genes, image_key=image_key, mpp=mpp)


def _check_fits(sdata: SpatialData, section: Section, model: SuperResolver, features_key: str) -> None:
    check_genes(section.table, model.genes, section.table_key)
    if features_key not in sdata.images:
        return  # gather_inputs says so
    made: dict[str, Any] = encoder_of(sdata, features_key)
    for name, expected in model.encoder.items():
        if made.get(name) != expected:
            raise ValueError(
                f"features_key={features_key!r} was made with {name}={made.get(name)!r}, but the model was fitted on "
                f"features with {name}={expected!r}: make the feature map with the model's encoder "
                f"({model.encoder.get('encoder')!r})."
            )


def _predicted(model: SuperResolver, inputs: Inputs) -> NDArray[np.float32]:
    """Counts of the tissue superpixels in row-major order, (n_superpixels, n_genes)."""
    total = int(inputs.features.mask.sum())
    with tqdm(total=total, desc="predicting", unit="superpixel", disable=not settings.progress) as bar:

        def on_block(n_superpixels: int) -> None:
            bar.update(n_superpixels)

        return model.predict_tissue(
            inputs.features, inputs.bags, inputs.spots, seed=int(model.info["seed"]), on_block=on_block
        )


def share_out(counts: NDArray[np.float32], weights: sparse.csr_matrix, measured: NDArray[np.float32]) -> None:
    """Scale counts per superpixel (n_superpixels, n_genes) in place so that ``weights @ counts`` is ``measured``.

    A gene that was measured in a spot but predicted nowhere in it is spread evenly. Rounds are needed only where a
    superpixel lies in two spots.
    """
    for _ in range(_MAX_ROUNDS):
        for spot, target in enumerate(measured):
            part = slice(weights.indptr[spot], weights.indptr[spot + 1])
            inside, share = weights.indices[part], weights.data[part]
            total = share @ counts[inside]
            factor = target / np.where(total > 0, total, 1.0)
            counts[inside] = np.where(total > 0, counts[inside] * factor, target / share.sum())
        if np.allclose(weights @ counts, measured, rtol=1e-5, atol=1e-5):
            return
