"""Fit the HISTEX model to one section."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex._section import Section, resolve_section
from sphistex.encoders.base import resolve_device
from sphistex.nn import FitParameters, SuperResolver, parameters
from sphistex.settings import settings
from sphistex.tl._genes import choose_genes
from sphistex.tl._inputs import encoder_of, gather_inputs
from sphistex.tl._trust import section_id


def fit(
    sdata: SpatialData,
    *,
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
    eq. 11). ``sdata`` is not changed.

    Parameters
    ----------
    sdata
        SpatialData with an H&E image, Visium spots and their raw counts, a tissue mask
        (:func:`sphistex.pp.tissue_mask`) and a feature map (:func:`sphistex.tl.superpixel_features`).
    genes
        Names of genes; or how many of the most variable ones; None for 1,000; or ``"all"`` that are seen in enough
        spots to have a pattern: in 2 % of them, or in 100 where that is less.
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
    names = choose_genes(section.table, genes)
    return fit_section(
        sdata,
        section,
        names,
        chosen,
        features_key=features_key,
        tissue_key=tissue_key,
        seed=seed,
        device=device,
    )


def check_seed(seed: int | None) -> int:
    """The seed to use, that of the settings if None."""
    if seed is None:
        return settings.seed
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number of at least 0.")
    return int(seed)


def fit_section(
    sdata: SpatialData,
    section: Section,
    genes: list[str],
    chosen: FitParameters,
    *,
    features_key: str,
    tissue_key: str,
    seed: int,
    device: str | None,
) -> SuperResolver:
    """Fit to a section that has been resolved and checked."""
    inputs = gather_inputs(
        sdata, section, genes, features_key=features_key, tissue_key=tissue_key, context=chosen.context
    )
    started = time.perf_counter()
    with tqdm(total=chosen.epochs, desc="training", unit="epoch", disable=not settings.progress) as bar:

        def on_epoch(_epoch: int, train: float, validation: float) -> None:
            bar.set_postfix(train=f"{train:.4f}", held_out=f"{validation:.4f}", refresh=False)
            bar.update()

        model = SuperResolver.fit(
            inputs.features,
            inputs.bags,
            inputs.spots,
            genes,
            chosen,
            seed=seed,
            device=resolve_device(device or settings.device),
            on_epoch=on_epoch,
        )
    model.encoder = encoder_of(sdata, features_key)
    model.info["seconds"] = round(time.perf_counter() - started, 2)
    model.info["n_spots"] = len(inputs.spots.counts)
    model.info["section_id"] = section_id(inputs.spots)
    return model
