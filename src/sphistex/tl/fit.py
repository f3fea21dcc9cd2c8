"""Fit the HISTEX model to one section, or to several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex._cluster import active_client
from sphistex.encoders.base import resolve_device
from sphistex.nn import FitParameters, SuperResolver, parameters
from sphistex.nn.training import train
from sphistex.settings import settings
from sphistex.tl._fit_folder import FitFolder
from sphistex.tl._inputs import encoder_of, gather_inputs
from sphistex.tl._members import OnWorkers
from sphistex.tl._sections import Placed, about, common_genes, resolve_sections


def fit(
    sdata: SpatialData | Sequence[SpatialData],
    *,
    sections: str | Mapping[str, Mapping[str, Any]] | None = None,
    genes: int | Sequence[str] | Literal["all"] | None = None,
    preset: str = "default",
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
    features_key: str = "superpixel_features",
    tissue_key: str = "tissue",
    strict: bool = False,
    seed: int | None = None,
    device: str | None = None,
    **fit_parameters: Any,
) -> SuperResolver:
    """Learn how a section's superpixels share out the counts of its spots.

    Every spot is a bag of superpixels whose expected counts must add up to the spot's (multiple-instance learning,
    eq. 11). Of several sections one model is fitted to the spots of all, each of which sees its own section only.
    ``sdata`` is not changed.

    After an interruption the same call goes on from the last checkpoint, and gives the same model. Until then its
    checkpoints lie in a hidden folder beside the store of ``sdata``, or in the cache folder of the settings, where a
    later fit removes what was left for a week; without room for them there is a warning, and training goes on. With a
    ``dask.distributed`` client active, the models of the ensemble are trained on its workers; but for rounding they are
    those that would be trained here.

    Parameters
    ----------
    sdata
        SpatialData with an H&E image, Visium spots and their raw counts, a tissue mask
        (:func:`sphistex.pp.tissue_mask`) and a feature map (:func:`sphistex.tl.superpixel_features`); or a list of
        such objects, one for each section.
    sections
        Several sections of one object, as in :func:`super_resolve`. The feature map and the mask of a section are
        called ``<features_key>_<section>`` and ``<tissue_key>_<section>``.
    genes
        Names of genes; or how many of the most variable ones, over all sections; None for 1,000; or ``"all"`` that are
        seen in enough spots to have a pattern: in 2 % of them, or in 100 where that is less.
    preset
        ``"default"``, what measured best; or ``"paper"``, the published configuration.
    image_key, shapes_key, table_key, coordinate_system
        Which elements; needed only where there are several candidates.
    mpp
        Microns per image pixel; by default from the spot pitch.
    spot_pitch_um
        Distance between neighbouring spots in µm, where it is neither recorded nor Visium's 100.
    features_key, tissue_key
        Names of the feature map and of the tissue mask.
    strict
        Refuse counts that look normalised instead of warning.
    seed
        Seed of everything random; default: that of the settings. Same seed and device, same model.
    device
        Torch device; default: that of the settings.
    fit_parameters
        Changes to the preset, see :class:`sphistex.nn.FitParameters`.

    Returns
    -------
    The fitted model, for :func:`sphistex.tl.predict`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If elements, genes or parameters cannot be used; before any training.
    MemoryError
        If the device has no memory for a single bag; with less than a batch needs, the batch is halved.

    References
    ----------
    HISTEX (MICCAI 2025), eq. 6–11.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0")
    >>> model = sx.tl.fit(sdata, genes=10, epochs=2, n_models=1)
    >>> len(model.genes)
    10
    """
    chosen = parameters(preset, **fit_parameters)
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
    placed = resolve_sections(
        sdata, sections, elements, features_key=features_key, tissue_key=tissue_key, strict=strict
    )
    with fitted(placed, common_genes(placed, genes), chosen, seed=seed, device=device) as model:
        return model


def check_seed(seed: int | None) -> int:
    """The seed to use, that of the settings if None."""
    if seed is None:
        return settings.seed
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number of at least 0.")
    return int(seed)


@contextmanager
def fitted(
    placed: Sequence[Placed], genes: list[str], chosen: FitParameters, *, seed: int, device: str | None
) -> Iterator[SuperResolver]:
    """Fit to sections that have been resolved and checked, or go on with such a fit that was interrupted.

    What is needed to go on is kept until the block ends without an error.
    """
    inputs = []
    for one in placed:
        with about(one.called):
            inputs.append(
                gather_inputs(
                    one.sdata,
                    one.section,
                    genes,
                    features_key=one.features_key,
                    tissue_key=one.tissue_key,
                    context=chosen.context,
                )
            )
    encoder, where = _one_encoder(placed), resolve_device(device or settings.device)
    folder = FitFolder.of(placed[0].sdata, inputs, genes, chosen, encoder=encoder, seed=seed, device=where)
    model = folder.model(where)
    if model is None:
        started = time.perf_counter()
        with _training(folder, chosen.epochs, device or settings.device) as how:
            model = SuperResolver.fit_sections(inputs, genes, chosen, seed=seed, device=where, **how)
        model.encoder = encoder
        model.info["seconds"] = round(time.perf_counter() - started, 2)
        model.info["n_spots"] = sum(len(one.spots) for one in inputs)
        model.info["n_sections"] = len(inputs)
        folder.keep(model)
    yield model
    folder.remove()


@contextmanager
def _training(folder: FitFolder, epochs: int, device: str) -> Iterator[dict[str, Any]]:
    """Arguments of the fit that say where it is trained, and show how far it is."""
    client = active_client()
    if client is not None:
        yield {"train": OnWorkers(client, folder.path, device)}
        return
    with tqdm(total=epochs, desc="training", unit="epoch", disable=not settings.progress) as bar:

        def on_epoch(epoch: int, train: float, validation: float) -> None:
            bar.set_postfix(train=f"{train:.4f}", held_out=f"{validation:.4f}", refresh=False)
            bar.update(epoch + 1 - bar.n)  # it may have gone on from a checkpoint

        yield {"train": partial(train, checkpoint=folder.checkpoint), "on_epoch": on_epoch}


def _one_encoder(placed: Sequence[Placed]) -> dict[str, Any]:
    """How the feature maps of all sections were made."""
    made = [encoder_of(one.sdata, one.features_key) for one in placed]
    for one, other in zip(placed[1:], made[1:], strict=True):
        for name in made[0] | other:
            if made[0].get(name) != other.get(name):
                raise ValueError(
                    f"the features of {placed[0].called} were made with {name}={made[0].get(name)!r}, those of "
                    f"{one.called} with {name}={other.get(name)!r}: make them with the same encoder"
                )
    return made[0]
