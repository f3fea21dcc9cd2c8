"""How certain a result is: intervals at any scale, and where a gene is expressed above a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex._checks import check_open, is_number
from sphistex.metrics import coarsen
from sphistex.metrics.lattice import maps
from sphistex.tl._genes import check_genes
from sphistex.tl._lazy import LazyCounts
from sphistex.tl._trust import calibration_of, made_how

# Genes whose maps are in memory at once.
_GENES_AT_ONCE = 8
# Where half of the genes have means farther than this factor from their counts', or all totals are this much alike,
# X holds no counts.
_FAR = 5.0
_ALIKE = 1e-3


def confidence(
    sdata: SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = "superres",
    scale_um: float = 8.0,
    level: float = 0.9,
    of: Literal["counts", "expression"] = "counts",
    above: float | None = None,
    fdr: float = 0.1,
) -> AnnData:
    """Calibrated intervals of a result at one scale, and where its genes are expressed above a threshold.

    While a model is fitted, each of its networks leaves out some of the spots. How far the predictions for these lie
    from what was measured there says how far the map lies from what would be measured anywhere: counts are taken to be
    negative binomial around the prediction, with a variance that is learnt for each gene.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`super_resolve`. It is not changed.
    genes
        One gene or several; by default all. Everything returned is as large as the result, so choose.
    key
        Name of the result.
    scale_um
        Side of the squares that superpixels are summed over, in µm: a multiple of the superpixel's. Squares that lie on
        tissue by less than half are left out.
    level
        Share of the intervals that hold.
    of
        ``"counts"``: what the instrument would measure, as deep as the spots, with its noise; ``"expression"``: what
        is behind the counts, the mean of many such measurements.
    above
        Counts per superpixel above which a gene is called; by default its mean over the spots.
    fdr
        Share of the calls of a gene that are expected to be false: places whose expression is not above the threshold.

    Returns
    -------
    Table with one row per square and one column per gene. ``X`` and the layers are counts per square: expected,
    ``layers["lower"]``, ``layers["upper"]``; ``layers["probability"]`` is that of an expression above the threshold,
    ``layers["called"]`` (boolean) the calls. ``obs``: ``array_row``, ``array_col`` and ``n_superpixels``;
    ``obsm["spatial"]``: centres in pixels of the image; ``uns["confidence"]``: the arguments.

    Raises
    ------
    KeyError
        If there is no such result or gene.
    ValueError
        If an argument makes no sense, the result has no calibration, its table is empty, no square lies on tissue, or
        ``X`` does not hold the counts: after ``log1p``, or where it looks normalised, see below.

    Notes
    -----
    Counts are whole numbers: a gene that is hardly ever counted has the interval 0 to 0 nearly everywhere, which holds
    more often than ``level`` says. How errors fall with the scale was measured on two sections with a truth at 8 µm.

    The table may be cut to a part of its superpixels or genes, but must hold counts. It is taken to be normalised where
    the median over its genes of the ratio between their mean and ``var["mean_count"]`` is beyond 1/5 to 5, or where all
    superpixels add up to the same.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=1200, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=3)
    >>> table = sx.tl.confidence(sdata, model.genes[:2], scale_um=32)
    >>> bool((table.layers["lower"] <= table.layers["upper"]).all())
    True
    """
    table = _result(sdata, key)
    whole = calibration_of(table, key)
    names = check_genes(table, [genes] if isinstance(genes, str) else table.var_names if genes is None else genes, key)
    factor = _checked(whole.pitch_um, scale_um, level, of, above, fdr)
    if not isinstance(table.X, LazyCounts):
        _check_counts(table, key, whole.mean)
    columns = table.var_names.get_indexer(names)
    mask, order = _lattice(table)
    if factor > min(mask.shape):
        raise ValueError(f"scale_um={scale_um:g} is wider than the tissue: choose a smaller one")
    area, kept = coarsen(mask.astype(float), mask, factor)
    if not kept.any():
        raise ValueError(f"scale_um={scale_um:g}: no square of that side lies on tissue by half: choose a smaller one")
    shape = len(area), len(columns)
    layers = {name: np.empty(shape, np.float32) for name in ("expected", "lower", "upper", "probability")}
    called = np.empty(shape, bool)
    for first in range(0, len(columns), _GENES_AT_ONCE):
        part = slice(first, first + _GENES_AT_ONCE)
        calibration = whole.take(columns[part])
        expected, _ = coarsen(maps(np.asarray(table.X[:, columns[part]])[order], mask, slice(None)), mask, factor)
        interval = calibration.count_interval if of == "counts" else calibration.expression_interval
        threshold = area * (calibration.mean if above is None else above)
        probability = calibration.probability_above(expected, area.ravel(), threshold)
        values = expected, *interval(expected, area.ravel(), level), probability
        for layer, found in zip(layers.values(), values, strict=True):
            layer[:, part] = found
        called[:, part] = _called(probability, fdr)
    squares = ad.AnnData(
        layers.pop("expected"), obs=_places(kept), var=table.var.loc[names].copy(), layers=layers | {"called": called}
    )
    squares.obs["n_superpixels"] = area.ravel().astype(int)
    squares.obsm["spatial"] = _centres_px(made_how(table, key), squares.obs, factor)
    asked = {"key": key, "scale_um": float(scale_um), "level": level, "of": of, "fdr": fdr}
    squares.uns["confidence"] = asked if above is None else asked | {"above": float(above)}
    return squares


def _result(sdata: SpatialData, key: str) -> AnnData:
    if key not in sdata.tables:
        raise KeyError(f"key={key!r} is not in sdata.tables ({sorted(sdata.tables)}): run sphistex.tl.super_resolve")
    table = sdata.tables[key]
    if not table.n_obs or not table.n_vars:
        raise ValueError(f"key={key!r} is empty, {table.n_obs} superpixels × {table.n_vars} genes: make it again")
    if "log1p" in table.uns:
        raise ValueError(f"key={key!r} holds logarithms, and intervals are of counts: keep the counts in X")
    check_open(table, key)
    return table


def _check_counts(table: AnnData, key: str, mean: NDArray[np.float64]) -> None:
    """Refuse counts that were normalised; ``mean`` is that of the counts per superpixel (n_genes,).

    A part of a section has other means than the whole, but hardly for most of its genes by so much. Normalised to
    their usual total, counts keep their means; then all superpixels add up to the same.
    """
    found, total = (np.asarray(table.X.sum(axis, dtype=np.float64)).ravel() for axis in (0, 1))
    ratio = float(np.median(found / table.n_obs / np.maximum(mean, 1e-300)))
    total = total[total > 0]
    alike = len(total) > 1 and np.ptp(total) <= _ALIKE * total.max()
    if alike or not 1 / _FAR <= ratio <= _FAR:
        what = "All superpixels add up to the same." if alike else f"Means are {ratio:.3g} times those of the counts."
        raise ValueError(
            f"key={key!r} holds values that look normalised, and intervals are of counts: hold the counts in X, and "
            f"normalise a copy. {what}"
        )


def _checked(pitch_um: float, scale_um: float, level: float, of: str, above: float | None, fdr: float) -> int:
    """How many superpixels wide a square is."""
    factor = round(scale_um / pitch_um) if is_number(scale_um) else 0
    if factor < 1 or not np.isclose(factor * pitch_um, scale_um):
        raise ValueError(f"scale_um={scale_um!r} must be a multiple of {pitch_um:g} µm, the side of a superpixel")
    for name, value in (("level", level), ("fdr", fdr)):
        if not (is_number(value) and 0 < value < 1):
            raise ValueError(f"{name}={value!r} must lie between 0 and 1")
    if of not in ("counts", "expression"):
        raise ValueError(f'of={of!r} must be "counts" or "expression"')
    if above is not None and not (is_number(above) and above >= 0):
        raise ValueError(f"above={above!r} must be a number of counts per superpixel, not below 0")
    return factor


def _lattice(table: AnnData) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Where the result has superpixels, (rows, columns), and their order row by row."""
    row, column = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    mask = np.zeros((row.max() + 1, column.max() + 1), dtype=bool)
    mask[row, column] = True
    return mask, np.lexsort((column, row))


def _places(kept: NDArray[np.bool_]) -> pd.DataFrame:
    row, column = np.nonzero(kept)
    names = [f"{r}x{c}" for r, c in zip(row, column, strict=True)]
    return pd.DataFrame({"array_row": row, "array_col": column}, index=names)


def _centres_px(made: dict[str, Any], places: pd.DataFrame, factor: int) -> NDArray[np.float64]:
    """Centres (n_squares, 2) of squares in pixels of the image, x first."""
    pitch_px = float(made["pitch_um"]) / float(made["mpp"])
    within = (places[["array_col", "array_row"]].to_numpy() + 0.5) * factor
    return (within + np.asarray(made["crop"])[::-1]) * pitch_px


def _called(probability: NDArray[np.float64], fdr: float) -> NDArray[np.bool_]:
    """The most probable places of each gene, as many as can be called with a mean error of no more than ``fdr``."""
    order = np.argsort(-probability, axis=0, kind="stable")
    error = np.cumsum(1 - np.take_along_axis(probability, order, 0), 0) / np.arange(1, len(probability) + 1)[:, None]
    called = np.zeros(probability.shape, dtype=bool)
    np.put_along_axis(called, order, error <= fdr, axis=0)
    return called
