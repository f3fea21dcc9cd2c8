"""How certain a result is: intervals at any scale, and where a gene is expressed above a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from sphistex.metrics import coarsen
from sphistex.tl._genes import check_genes
from sphistex.tl._trust import calibration_of

# Genes whose maps are in memory at once.
_GENES_AT_ONCE = 8


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
        If an argument makes no sense, or the result has no calibration because too few spots were left out.

    Notes
    -----
    Counts are whole numbers: a gene that is hardly ever counted has the interval 0 to 0 nearly everywhere, which holds
    more often than ``level`` says. How errors fall with the scale was measured on two sections with a truth at 8 µm.

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
    names = check_genes(table, [genes] if isinstance(genes, str) else table.var_names if genes is None else genes, key)
    factor = _checked(table, key, scale_um, level, of, above, fdr)
    columns = table.var_names.get_indexer(names)
    mask = _mask(table)
    if factor > min(mask.shape):
        raise ValueError(f"scale_um={scale_um:g} is wider than the tissue: choose a smaller one")
    area, kept = coarsen(mask.astype(float), mask, factor)
    squares = ad.AnnData(obs=_places(kept), var=table.var.loc[names].copy())
    squares.obs["n_superpixels"] = area.ravel().astype(int)
    squares.obsm["spatial"] = _centres_px(table.uns[key], squares.obs, factor)
    whole = calibration_of(table, key)
    parts = []
    for first in range(0, len(columns), _GENES_AT_ONCE):
        some = columns[first : first + _GENES_AT_ONCE]
        calibration = whole.take(some)
        expected, _ = coarsen(_maps(table, some, mask), mask, factor)
        interval = calibration.count_interval if of == "counts" else calibration.expression_interval
        threshold = area * (calibration.mean if above is None else above)
        probability = calibration.probability_above(expected, area.ravel(), threshold)
        values = expected, *interval(expected, area.ravel(), level), probability
        parts.append((*(x.astype(np.float32) for x in values), _called(probability, fdr)))
    squares.X, *layers = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    squares.layers.update(dict(zip(("lower", "upper", "probability", "called"), layers, strict=True)))
    asked = {"key": key, "scale_um": float(scale_um), "level": level, "of": of, "fdr": fdr}
    squares.uns["confidence"] = asked if above is None else asked | {"above": float(above)}
    return squares


def _result(sdata: SpatialData, key: str) -> AnnData:
    if key not in sdata.tables:
        raise KeyError(f"key={key!r} is not in sdata.tables ({sorted(sdata.tables)}): run sphistex.tl.super_resolve")
    if "log1p" in sdata.tables[key].uns:
        raise ValueError(f"key={key!r} holds logarithms, and intervals are of counts: keep the counts in X")
    return sdata.tables[key]


def _checked(table: AnnData, key: str, scale_um: float, level: float, of: str, above: float | None, fdr: float) -> int:
    """How many superpixels wide a square is."""
    pitch_um = calibration_of(table, key).pitch_um
    factor = round(scale_um / pitch_um) if np.isfinite(scale_um) else 0
    if factor < 1 or not np.isclose(factor * pitch_um, scale_um):
        raise ValueError(f"scale_um={scale_um!r} must be a multiple of {pitch_um:g} µm, the side of a superpixel")
    for name, value in (("level", level), ("fdr", fdr)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r} must lie between 0 and 1")
    if of not in ("counts", "expression"):
        raise ValueError(f'of={of!r} must be "counts" or "expression"')
    if above is not None and not (np.isfinite(above) and above >= 0):
        raise ValueError(f"above={above!r} must be a number of counts per superpixel, not below 0")
    return factor


def _mask(table: AnnData) -> NDArray[np.bool_]:
    """Where the result has superpixels, (rows, columns)."""
    row, column = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    mask = np.zeros((row.max() + 1, column.max() + 1), dtype=bool)
    mask[row, column] = True
    return mask


def _maps(table: AnnData, genes: NDArray[np.intp], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Maps (rows, columns, n_genes) of some genes."""
    counts = table.X[:, genes]
    out = np.zeros((*mask.shape, len(genes)))
    out[table.obs["array_row"], table.obs["array_col"]] = counts.toarray() if sparse.issparse(counts) else counts
    return out


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
