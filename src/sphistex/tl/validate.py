"""How good a model is where there is no truth: on counts, and at places, that it has not seen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData, read_zarr
from numpy.typing import NDArray
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex._checks import check_tissue_spots, is_number
from sphistex._section import resolve_section
from sphistex._store import add_element, attach
from sphistex.encoders.base import resolve_device
from sphistex.metrics import explained, thin_counts
from sphistex.nn import FitParameters, Inputs, SuperResolver, parameters
from sphistex.nn.pooling import pooling
from sphistex.nn.residuals import SmoothResiduals
from sphistex.settings import settings
from sphistex.tl._genes import choose_genes
from sphistex.tl._inputs import gather_inputs
from sphistex.tl.fit import check_seed

By = Literal["halves", "blocks"]
# One block in so many is held out, so that enough is left to learn from.
_ONE_IN = 5
# Places at which interpolation is looked up at once: there may be very many bins.
_PLACES_AT_ONCE = 4096


def validate(
    sdata: SpatialData,
    *,
    by: By | Sequence[By] = ("halves", "blocks"),
    block_um: float = 500.0,
    genes: int | Sequence[str] | None = None,
    preset: str = "default",
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
    features_key: str = "superpixel_features",
    tissue_key: str = "tissue",
    key: str = "superres",
    seed: int | None = None,
    device: str | None = None,
    **fit_parameters: Any,
) -> pd.DataFrame:
    """Judge every gene without a truth, by fitting to one part of the data and scoring on the other.

    ``"halves"``: the counts of every spot are thinned binomially into two halves whose noise is independent; the model
    is fitted to one, and what its map adds up to in each spot is compared with the other. This shows whether a map
    holds more than noise. ``"blocks"``: spots of whole squares of the section are held out, and what the map says there
    is compared with what they measured. This shows what the image alone knows of places far from any spot.

    Beside the model stands interpolation of the same spots: their counts smoothed by a Gaussian process. With halves
    it knows half of the very counts that it is scored on, and is hard to beat; with blocks it knows nothing nearby.

    Parameters
    ----------
    sdata
        Section with a tissue mask and a feature map, as for :func:`fit`.
    by
        ``"halves"``, ``"blocks"``, or both; each is a fit.
    block_um
        Side of the squares in µm.
    genes, preset, fit_parameters
        What is fitted, and how; see :func:`fit`. ``genes`` are by default those of the result ``key``, if there is one.
    image_key, shapes_key, table_key, coordinate_system, mpp, spot_pitch_um, features_key, tissue_key, seed, device
        As in :func:`fit`.
    key
        Name of a result, whose ``var`` gets the columns with the prefixes ``halves_`` and ``blocks_``.

    Returns
    -------
    Table with one row per gene and way (index ``gene``, column ``by``), and the columns of
    :func:`sphistex.metrics.explained`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If elements, genes or parameters cannot be used, counts that are to be thinned are not whole numbers, or blocks
        leave too few spots; before any training.

    References
    ----------
    Count splitting: Neufeld et al., Inference after latent variable estimation for single-cell RNA sequencing data,
    Biostatistics 2024.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=900, n_genes=20)
    >>> sx.tl.superpixel_features(sdata, encoder="efficientnet_lite0")
    >>> table = sx.tl.validate(sdata, by="halves", epochs=2, n_models=1)
    >>> len(table)
    20
    """
    ways = [by] if isinstance(by, str) else list(by)
    if not ways or not set(ways) <= set(get_args(By)):
        raise ValueError(f'by={by!r} must be "halves", "blocks" or both')
    chosen = parameters(preset, **fit_parameters)
    seed = check_seed(seed)
    where = str(resolve_device(device or settings.device))
    section = resolve_section(
        sdata,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        mpp=mpp,
        spot_pitch_um=spot_pitch_um,
    )
    result = sdata.tables.get(key)
    names = choose_genes(section.table, list(result.var_names) if genes is None and result is not None else genes)
    inputs = gather_inputs(
        sdata, section, names, features_key=features_key, tissue_key=tissue_key, context=chosen.context
    )
    held_out = _blocks(inputs.spots.xy_um, block_um)
    if "blocks" in ways:
        _check_enough(held_out, block_um)
    if "halves" in ways:
        _check_whole(inputs.spots.counts, section.table_key)
    tables = []
    for way in tqdm(ways, desc="validating", unit="fit", disable=not settings.progress):
        judge = _by_halves if way == "halves" else _by_blocks
        tables.append(judge(inputs, held_out, names, chosen, seed, where).assign(by=way))
    if result is not None:
        _note(sdata, key, tables)
    return pd.concat(tables)


def _by_halves(
    inputs: Inputs, _held_out: NDArray[np.bool_], genes: list[str], chosen: FitParameters, seed: int, device: str
) -> pd.DataFrame:
    """Fit to one half of the counts, score on the other."""
    first, second = (np.asarray(half) for half in thin_counts(inputs.spots.counts, seed=seed))
    half = Inputs(inputs.features, inputs.bags, replace(inputs.spots, counts=first))
    everywhere = np.ones(len(first), dtype=bool)
    expected = _expected(half, half, genes, chosen, seed, device)
    smooth = _smoothed(half, inputs, everywhere, seed)
    return explained(expected, smooth, second, genes=genes, half=first)


def _by_blocks(
    inputs: Inputs, held_out: NDArray[np.bool_], genes: list[str], chosen: FitParameters, seed: int, device: str
) -> pd.DataFrame:
    """Fit to the spots outside the blocks, score on those inside."""
    seen = _take(inputs, ~held_out)
    expected = _expected(seen, _take(inputs, held_out), genes, chosen, seed, device)
    smooth = _smoothed(seen, inputs, held_out, seed)
    return explained(expected, smooth, inputs.spots.counts[held_out], genes=genes, seed=seed)


def _expected(
    seen: Inputs, scored: Inputs, genes: list[str], chosen: FitParameters, seed: int, device: str
) -> NDArray[np.float64]:
    """What the map of a model fitted to ``seen`` adds up to in the spots of ``scored``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = SuperResolver.fit(seen.features, seen.bags, seen.spots, genes, chosen, seed=seed, device=device)
    places = scored.bags.weights.tocsc()
    sums = np.zeros((places.shape[0], len(genes)))
    for (rows, columns), rates in model.predict(seen.features, seen.bags, seen.spots, seed=seed):
        row, column = np.nonzero(seen.features.mask[rows, columns])
        index = np.ravel_multi_index((row + rows.start, column + columns.start), seen.features.mask.shape)
        sums += places[:, index] @ rates[row, column]
    return sums


def _smoothed(seen: Inputs, all_spots: Inputs, scored: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    """What smoothing the spots of ``seen`` says of those that are scored."""
    pool, _ = pooling(seen.spots.xy_um, seen.spots.pitch_um)
    density = np.asarray(pool @ seen.spots.counts / (pool @ np.asarray(seen.bags.weights.sum(1))), dtype=np.float64)
    mean = density.mean(0)
    centres = pool @ seen.spots.xy_um / np.asarray(pool.sum(1))
    smooth = SmoothResiduals.fit(centres, density - mean, seed=seed)
    expected = np.asarray(all_spots.bags.weights.sum(1))[scored] * np.ones(len(mean))
    xy_um = all_spots.spots.xy_um[scored]
    for first in range(0, len(expected), _PLACES_AT_ONCE):
        part = slice(first, first + _PLACES_AT_ONCE)
        expected[part] *= np.maximum(mean + smooth(xy_um[part]), 0)
    return expected


def _take(inputs: Inputs, chosen: NDArray[np.bool_]) -> Inputs:
    """Some of the spots."""
    spots = inputs.spots
    some = replace(spots, xy_um=spots.xy_um[chosen], radius_um=spots.radius_um[chosen], counts=spots.counts[chosen])
    return Inputs(inputs.features, inputs.bags.take(chosen), some)


def _blocks(xy_um: NDArray[np.float64], block_um: float) -> NDArray[np.bool_]:
    """Spots (n_spots,) in the squares that are held out: one in ``_ONE_IN``, none beside another."""
    if not (is_number(block_um) and block_um > 0):
        raise ValueError(f"block_um={block_um!r} must be a positive number of µm")
    column, row = np.floor((xy_um - xy_um.min(0)) / block_um).astype(int).T
    return (column + 2 * row) % _ONE_IN == 0


def _check_enough(held_out: NDArray[np.bool_], block_um: float) -> None:
    if held_out.sum() < 3:
        raise ValueError(
            f"block_um={block_um:g}: the squares that are held out hold {held_out.sum()} spots; choose smaller ones"
        )
    check_tissue_spots(~held_out)


def _check_whole(counts: NDArray[np.float32], table_key: str) -> None:
    if (counts % 1).any():
        raise ValueError(
            f"table {table_key!r} has counts that are not whole numbers, which cannot be split into halves: "
            'pass the raw counts, or by="blocks"'
        )


def _note(sdata: SpatialData, key: str, tables: list[pd.DataFrame]) -> None:
    """Add the scores to the result's ``var``, in memory and on disk; nothing else is changed in either."""
    table = sdata.tables[key]
    _add_scores(table, tables)
    if sdata.is_backed() and (stored := Path(sdata.path) / "tables" / key).exists():
        # what the user made of the counts in memory is no business of the store
        on_disk = read_zarr(stored)
        _add_scores(on_disk, tables)
        add_element(sdata, "tables", key, on_disk, overwrite=True)
        attach(sdata, "tables", key, table)


def _add_scores(table: AnnData, tables: list[pd.DataFrame]) -> None:
    """Columns for ``var``, without a value for genes that were not scored."""
    for scores in tables:
        way = scores["by"].iloc[0]
        for column in scores.columns.drop("by"):
            table.var[f"{way}_{column}"] = scores[column].reindex(table.var_names)
        table.var[f"{way}_verdict"] = table.var[f"{way}_verdict"].astype("category")
