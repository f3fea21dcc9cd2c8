"""Apply a fitted model: the high-resolution table and its labels."""

from __future__ import annotations

import json
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation
from tqdm.auto import tqdm

from sphistex._section import Section, image_alone, is_image_alone, resolve_section
from sphistex.nn import FeatureMap, Inputs, SuperResolver
from sphistex.nn.genes import GeneReader
from sphistex.nn.prediction import Mapper
from sphistex.settings import settings
from sphistex.tl._by_block import by_block, counts
from sphistex.tl._genes import check_genes
from sphistex.tl._inputs import encoder_of, gather_inputs, tissue_of
from sphistex.tl._latent import add_latent_map, fingerprint
from sphistex.tl._lazy import Counts, LazyCounts
from sphistex.tl._result import add_result, check_result_free, latent_name
from sphistex.tl._trust import check_drop, gene_table, judged_on, kept_genes

# Spots of a lattice do not share superpixels, or hardly: sharing counts out converges at once.
_MAX_ROUNDS = 100
# Nobody looks at all of more genes than this at once: they are lazy from half the size on.
_MANY_GENES = 2000


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
    lazy: bool | None = None,
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
    lazy
        Keep what counts are read from, and compute them when they are asked for, gene by gene; False computes all of
        them now. By default where they would take more than ``settings.memory_gb``, or of more than 2,000 genes half
        of it, with a warning.
    overwrite
        Replace an existing result.

    Returns
    -------
    Adds ``sdata.tables[key_added]`` and ``sdata.labels[key_added + "_labels"]``; see
    :func:`sphistex.tl.super_resolve` for what they hold. ``uns[key_added]["spots"]`` says whether there were any. For
    a lazy result also ``sdata.images[key_added + "_latent"]``, the latent map that counts are read from (float16, on
    disk: in the store of ``sdata``, or in the cache folder), and ``sdata.tables[key_added + "_model"]``, which says
    how; see :func:`sphistex.tl.open_genes`.

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
        lazy=lazy,
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
    lazy: bool | None,
    overwrite: bool,
    unfinished: bool = False,
) -> None:
    """Predict a section that has been resolved and checked; see :func:`sphistex.tl._result.add_result`."""
    check_result_free(sdata, section, key_added, overwrite=overwrite)
    _check_fits(sdata, section, model, features_key)
    asked, lazy = lazy, held_lazily(tissue_of(sdata, section, tissue_key), len(model.genes), lazy, conserve_counts)
    inputs = gather_inputs(
        sdata, section, model.genes, features_key=features_key, tissue_key=tissue_key, context=model.parameters.context
    )
    model = judged_on(inputs, model)
    kept = kept_genes(model, drop_genes)
    found: NDArray[np.float32] | LazyCounts
    if lazy:
        if asked is None:
            warnings.warn(
                f"{key_added!r} is lazy: its counts, of {int(inputs.features.mask.sum())} superpixels and "
                f"{len(model.genes)} genes, have no room in settings.memory_gb={settings.memory_gb:g}. "
                f"sdata.tables[{key_added!r}][:, genes].to_memory(copy=True) computes some of them; lazy=False makes "
                "all of them now",
                stacklevel=2,
            )
        trust = gene_table(model, None, inputs.features.mask)
        found = _lazily(sdata, model, inputs, kept, features_key=features_key, key_added=key_added)
    else:
        found = _predicted(model, inputs)
        if conserve_counts:
            share_out(found, inputs.bags.weights[:, inputs.features.mask.ravel()].tocsr(), inputs.spots.counts)
        trust = gene_table(model, found, inputs.features.mask)
        found = found if kept.all() else found[:, kept]
    add_result(
        sdata,
        section,
        model,
        found,
        inputs.features.mask,
        trust[kept],
        features_key=features_key,
        tissue_key=tissue_key,
        conserve_counts=conserve_counts,
        key_added=key_added,
        overwrite=overwrite,
        unfinished=unfinished,
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


def held_lazily(mask: NDArray[np.bool_], n_genes: int, lazy: bool | None, conserve_counts: bool) -> bool:
    """Whether counts of the tissue's superpixels are computed when they are asked for, where ``lazy`` leaves it open.

    Raises
    ------
    TypeError, ValueError
        If ``lazy`` is none of True, False and None, or counts cannot be lazy because they are to be conserved.
    """
    if lazy is not None and not isinstance(lazy, bool):
        raise TypeError(f"lazy={lazy!r} must be True, False or None")
    size_gb = int(mask.sum()) * n_genes * 4 / 2**30
    room_gb = settings.memory_gb / 2 if n_genes > _MANY_GENES else settings.memory_gb
    chosen = size_gb > room_gb if lazy is None else lazy
    if chosen and conserve_counts:
        raise ValueError(
            f"conserve_counts=True needs the counts of all genes at once, {size_gb:.3g} GB, and lazy={lazy!r} keeps "
            f"them lazy (settings.memory_gb={settings.memory_gb:g}): pass lazy=False, fewer genes, or "
            "conserve_counts=False"
        )
    return chosen


def _lazily(
    sdata: SpatialData,
    model: SuperResolver,
    inputs: Inputs,
    kept: NDArray[np.bool_],
    *,
    features_key: str,
    key_added: str,
) -> LazyCounts:
    """Counts of the genes that are kept, from a latent map that is made now."""
    made_of = json.dumps(sdata.attrs.get("sphistex", {}).get(features_key, {}), sort_keys=True, default=str)
    tag = fingerprint(model, inputs.identity, made_of, str(np.flatnonzero(kept).tolist()))
    name = latent_name(key_added)
    mapper = _mapper(model, inputs)
    transformations = get_transformation(sdata.images[features_key], get_all=True)
    with _progress(inputs) as bar:
        add_latent_map(sdata, name, mapper, transformations, tag=tag, on_block=bar.update)
    reader = mapper.reader if kept.all() else mapper.reader.take(np.flatnonzero(kept))
    latent = FeatureMap(sdata.images[name].data, inputs.features.mask)
    return LazyCounts.of(Counts(latent, GeneReader.from_arrays(reader.to_arrays()), tag))


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
    features, mapper = inputs.features, _mapper(model, inputs)
    out = np.empty((int(features.mask.sum()), len(model.genes)), dtype=np.float32)
    with _progress(inputs) as bar:
        for window, found in by_block(mapper, counts):
            out[features.places(window)] = found
            bar.update(len(found))
    return out


def _mapper(model: SuperResolver, inputs: Inputs) -> Mapper:
    """What makes any block of the section's map."""
    return Mapper.of(model, inputs.features, inputs.bags, inputs.spots, seed=int(model.info["seed"]))


def _progress(inputs: Inputs) -> Any:
    """A bar over the superpixels."""
    total = int(inputs.features.mask.sum())
    return tqdm(total=total, desc="predicting", unit="superpixel", disable=not settings.progress)


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
