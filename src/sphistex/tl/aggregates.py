"""Where a signature's genes are high together over some area, as in tertiary lymphoid structures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label
from skimage.filters import threshold_otsu
from spatialdata import SpatialData
from spatialdata.models import ShapesModel

from sphistex._checks import is_number
from sphistex._section import moved
from sphistex._store import add_element, check_free, record, remove_element
from sphistex.tl._annotate import annotate, check_own
from sphistex.tl._expression import Expression, find_table
from sphistex.tl._gene_blocks import gene_blocks
from sphistex.tl._gene_names import why_unmatched
from sphistex.tl._outlines import outlines
from sphistex.tl._superpixels import Superpixels
from sphistex.tl.fit import check_seed

Threshold = Literal["chance", "otsu"]
# Fewest genes of a signature that must be in the table.
_FEWEST_GENES = 3
# Random signatures, and the share of the superpixels that they may call.
_N_RANDOM, _BY_CHANCE = 50, 0.01


def aggregates(
    sdata: SpatialData,
    genes: Sequence[str],
    *,
    table_key: str = "superres",
    smooth_um: float = 16.0,
    threshold: float | Threshold = "chance",
    min_area_um2: float = 5000.0,
    key_added: str = "aggregates",
    overwrite: bool = False,
    seed: int | None = None,
) -> None:
    """Find places where the genes of a signature are high together, such as tertiary lymphoid structures.

    The score of a superpixel is the mean over the signature's genes of their log-normalised expression, each gene
    divided by its spread over the section after its mean is taken off (z-scores), smoothed by a Gaussian. What lies
    above the threshold, connected along the sides of superpixels and large enough, is an aggregate.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`super_resolve`.
    genes
        The signature. Names are those of the table; genes that it does not have are left out, with a warning.
    table_key
        Name of the result.
    smooth_um
        Standard deviation of the Gaussian in µm; 0 leaves scores as they are.
    threshold
        Smallest smoothed score of an aggregate. ``"chance"``: what signatures of as many other genes of the table,
        drawn at random 50 times and scored and smoothed in the same way, exceed in 1 % of the superpixels;
        ``"otsu"``: Otsu's threshold of the scores, which divides any section in two; or a number.
    min_area_um2
        Smallest area of an aggregate.
    key_added
        Name of what is added.
    overwrite
        Replace what an earlier call added.
    seed
        Seed of the random signatures; by default that of the settings.

    Returns
    -------
    Nothing. Added are:

    - ``sdata.shapes[key_added]``: an outline for each aggregate in pixels of the image, numbered from 1 for the
      largest, with the columns ``area_um2``, ``n_superpixels``, ``score`` and ``max_score``; none if none was found;
    - ``obs[key_added]`` of the table: the aggregate that each superpixel lies in, or NaN; and
      ``obs[f"{key_added}_score"]``, the smoothed score;
    - ``uns[key_added]``: the signature's genes in the table, the threshold, and the arguments.

    Raises
    ------
    KeyError
        If there is no such table.
    TypeError, ValueError
        If an argument makes no sense, fewer than three genes of the signature are in the table, too few others for
        random signatures, or ``key_added`` exists; before any computing.

    Warns
    -----
    UserWarning
        If genes are missing, or no aggregate is found.

    References
    ----------
    Otsu, N. A threshold selection method from gray-level histograms. IEEE Trans. SMC 9, 62–66 (1979).

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=60)
    >>> truth = sdata.tables["truth"]
    >>> signature = truth.var_names[truth.var["cell_type"] == "lymphocyte"]
    >>> sx.tl.aggregates(sdata, list(signature), table_key="truth", key_added="lymphoid")
    >>> list(sdata.shapes["lymphoid"].columns)
    ['geometry', 'area_um2', 'n_superpixels', 'score', 'max_score']
    """
    table = find_table(sdata, table_key)
    _check_arguments(threshold, smooth_um, min_area_um2)
    seed = check_seed(seed)
    check_own(table, table_key, key_added, "aggregates", there=key_added in table.obs)
    check_free(sdata, "shapes", key_added, overwrite=overwrite)
    superpixels = Superpixels.of(sdata, table, table_key)
    signature = _in_table(genes, table.var, table_key)
    others = np.flatnonzero(~table.var_names.isin(signature))
    if threshold == "chance" and len(others) < 2 * len(signature):
        raise ValueError(
            f"threshold='chance': table {table_key!r} has {len(others)} genes beside the {len(signature)} of the "
            "signature, too few to draw random signatures from; pass threshold='otsu' or a number"
        )
    expression = Expression.of(table, table_key)

    sets = [table.var_names.get_indexer(signature)]
    if threshold == "chance":
        rng = np.random.default_rng(seed)
        sets += [rng.choice(others, len(signature), replace=False) for _ in range(_N_RANDOM)]
    smoothed = _smoothed(_scores(expression, sets), superpixels, smooth_um / superpixels.pitch_um)
    own = next(smoothed)
    limit = _limit(threshold, own, smoothed)
    regions = _regions(superpixels, own >= limit, min_area_um2)
    found = _described(regions.ravel()[superpixels.place], own, superpixels.pitch_um**2)
    made = {
        "made_by": "aggregates",
        "table_key": table_key,
        "genes": signature,
        "threshold": limit,
        "rule": threshold if isinstance(threshold, str) else "given",
        "smooth_um": float(smooth_um),
        "min_area_um2": float(min_area_um2),
        "seed": seed,
    }
    _add_shapes(sdata, superpixels, regions, found, made, key_added)
    change = partial(_add, number=regions.ravel()[superpixels.place], score=own, made=made, key_added=key_added)
    annotate(sdata, table_key, change)


# ----------------------------------------------------------------------------------------------- arguments


def _check_arguments(threshold: float | Threshold, smooth_um: float, min_area_um2: float) -> None:
    if not is_number(threshold) and threshold not in ("chance", "otsu"):
        raise ValueError(f'threshold={threshold!r} must be "chance", "otsu" or a number')
    for name, value in (("smooth_um", smooth_um), ("min_area_um2", min_area_um2)):
        if not (is_number(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be a number of at least 0")


def _in_table(genes: Sequence[str], var: pd.DataFrame, table_key: str) -> list[str]:
    """Genes of a signature that the table has."""
    if isinstance(genes, str):
        raise TypeError(f"genes={genes!r} is a string; pass the genes of a signature as a list")
    given = list(dict.fromkeys(str(gene) for gene in genes))
    matched = [gene for gene in given if gene in var.index]
    missing = [gene for gene in given if gene not in var.index]
    said = f"{len(matched)} of the {len(given)} genes of the signature are in table {table_key!r}"
    if len(matched) < _FEWEST_GENES:
        why = "" if matched or not given else why_unmatched(var, given, "the signature has")
        raise ValueError(f"{said}, at least {_FEWEST_GENES} are needed. {why}".rstrip())
    if missing:
        warnings.warn(f"{said}; left out are {missing[:10]}", UserWarning, stacklevel=3)
    return matched


# -------------------------------------------------------------------------------------------------- scores


def _scores(expression: Expression, sets: list[NDArray[np.intp]]) -> NDArray[np.float32]:
    """Mean z-score of the genes of each set (n_obs, n_sets); genes that do not vary count as 0."""
    columns, inverse = np.unique(np.concatenate(sets), return_inverse=True)
    member = np.zeros((len(columns), len(sets)), dtype=np.float32)
    np.add.at(member, (inverse, np.repeat(np.arange(len(sets)), [len(one) for one in sets])), 1 / len(sets[0]))
    table, factor = expression.table, expression.factor
    scores = np.zeros((table.n_obs, len(sets)), dtype=np.float32)
    for part, values in gene_blocks(table.X, columns):
        if factor is not None:
            values = np.log1p(values * factor[:, None])
        values -= values.mean(0)
        spread = values.std(0)
        values /= np.where(spread > 0, spread, 1)
        scores += values.astype(np.float32) @ member[part]
    return scores


def _smoothed(scores: NDArray[np.float32], superpixels: Superpixels, sigma: float) -> Iterator[NDArray[np.float32]]:
    """Each set's scores (n_obs,), averaged over the superpixels around."""
    spread = partial(gaussian_filter, sigma=sigma, mode="constant")
    weight = spread(superpixels.raster(np.ones(len(scores), np.float32), fill=np.float32(0)))
    for score in scores.T:
        total = spread(superpixels.raster(score, fill=np.float32(0)))
        yield (total.ravel()[superpixels.place] / weight.ravel()[superpixels.place]).astype(np.float32)


def _limit(threshold: float | Threshold, own: NDArray[np.float32], random: Iterator[NDArray[np.float32]]) -> float:
    """The smallest score of an aggregate."""
    if threshold == "otsu":
        return float(threshold_otsu(own))
    if threshold == "chance":
        return float(np.quantile(np.concatenate(list(random)), 1 - _BY_CHANCE))
    return float(threshold)


# ---------------------------------------------------------------------------------------------- aggregates


def _regions(superpixels: Superpixels, high: NDArray[np.bool_], min_area_um2: float) -> NDArray[np.int64]:
    """Connected regions that are large enough (rows, columns), 1 for the largest and so on, 0 elsewhere."""
    pieces, _ = label(superpixels.raster(high, fill=False))
    size = np.bincount(pieces.ravel())
    size[0] = 0
    by_size = np.argsort(-size, kind="stable")
    number = np.zeros(len(size), dtype=np.int64)
    number[by_size] = np.arange(1, len(size) + 1)
    number[(size == 0) | (size * superpixels.pitch_um**2 < min_area_um2)] = 0
    return number[pieces]


def _described(number: NDArray[np.int64], score: NDArray[np.float32], area_um2: float) -> pd.DataFrame:
    """Size and score of each aggregate."""
    inside = number > 0
    by_number = pd.Series(score[inside].astype(float)).groupby(number[inside])
    found = pd.DataFrame({"n_superpixels": by_number.size(), "score": by_number.mean(), "max_score": by_number.max()})
    found.insert(0, "area_um2", found["n_superpixels"] * area_um2)
    return found


def _add_shapes(
    sdata: SpatialData,
    superpixels: Superpixels,
    regions: NDArray[np.int64],
    found: pd.DataFrame,
    made: dict[str, Any],
    key_added: str,
) -> None:
    record(sdata, key_added, made)
    if found.empty:
        remove_element(sdata, "shapes", key_added)
        warnings.warn(
            f"no aggregate: nothing of at least {made['min_area_um2']:g} µm² reaches the threshold of "
            f"{made['threshold']:.3g}",
            UserWarning,
            stacklevel=3,
        )
        return
    polygons = shapely.transform(outlines(regions), lambda xy: moved(xy, superpixels.to_px))
    shapes = GeoDataFrame({"geometry": polygons} | {name: found[name].to_numpy() for name in found}, index=found.index)
    element = ShapesModel.parse(shapes, transformations=superpixels.transforms_from_px())
    add_element(sdata, "shapes", key_added, element, overwrite=True)


def _add(
    table: AnnData, *, number: NDArray[np.int64], score: NDArray[np.float32], made: dict[str, Any], key_added: str
) -> None:
    names = [str(one) for one in range(1, number.max(initial=0) + 1)]
    table.obs[key_added] = pd.Categorical.from_codes(number - 1, names)
    table.obs[f"{key_added}_score"] = score
    table.uns[key_added] = made
