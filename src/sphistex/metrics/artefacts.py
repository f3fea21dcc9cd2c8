"""Borders of the windows or tiles that a map was made in, and totals that are not the spots'."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from sphistex.metrics.lattice import Values, blocks


def border_score(predicted: Values, mask: NDArray[np.bool_], period: int) -> float:
    """How much more a map changes across regular borders than elsewhere.

    Parameters
    ----------
    predicted
        (rows, columns, n_genes) or (n_superpixels, n_genes).
    mask
        (rows, columns), the tissue.
    period
        Distance between borders in superpixels: the stride of the windows, or the side of the tiles.

    Returns
    -------
    The mean absolute difference between neighbouring superpixels across the borders, wherever in the period these lie
    worst, as a ratio to that between all neighbours. 1 without borders.

    Examples
    --------
    >>> tiles = np.kron(np.random.default_rng(0).random((5, 5)), np.ones((8, 8)))[..., None]
    >>> round(border_score(tiles, np.ones((40, 40), bool), 8))  # all change is at the borders
    10
    """
    if not 1 < period < min(mask.shape):
        raise ValueError(f"period={period} must be between 2 and the side of the map {mask.shape}.")
    ratios = []
    for axis in (0, 1):
        inside = np.moveaxis(mask, axis, 0)
        pairs = (inside[1:] & inside[:-1]).sum(1).astype(float)
        steps = np.zeros(len(pairs))
        for _, (found,) in blocks(mask, None, predicted):
            values = np.moveaxis(np.where(mask[..., None], found, np.nan), axis, 0).astype(np.float64)
            spread = np.nanstd(values, axis=(0, 1))
            steps += np.nansum(np.abs(np.diff(values, axis=0)) / np.where(spread > 0, spread, 1), axis=(1, 2))
        phases = np.arange(len(pairs)) % period
        of_phase = [steps[phases == phase].sum() / max(pairs[phases == phase].sum(), 1) for phase in range(period)]
        ratios.append(max(of_phase) / max(steps.sum() / max(pairs.sum(), 1), 1e-300))
    return float(max(ratios))


def spot_error(
    predicted: Values, mask: NDArray[np.bool_], weights: sparse.spmatrix, counts: ArrayLike, *, genes: list[str]
) -> pd.DataFrame:
    """How far the superpixels of each spot are from adding up to what it measured.

    Parameters
    ----------
    predicted
        Counts per superpixel, (rows, columns, n_genes) or (n_superpixels, n_genes).
    mask
        (rows, columns), the tissue.
    weights
        Sparse (n_spots, rows × columns), the share of each superpixel in each spot: ``Bags.weights``.
    counts
        (n_spots, n_genes).
    genes
        Names of the genes.

    Returns
    -------
    Table with columns ``gene`` and ``spot_error``: the mean absolute difference between the sum and the measured count,
    divided by the mean count.

    Examples
    --------
    >>> weights = sparse.csr_matrix(np.array([[1.0, 1.0, 0.0, 0.0]]))
    >>> spot_error(np.ones((2, 2, 1)), np.ones((2, 2), bool), weights, [[4.0]], genes=["a"]).spot_error.tolist()
    [0.5]
    """
    counts = np.asarray(counts, dtype=np.float64)
    tables, first = [], 0
    for names, (values,) in blocks(mask, genes, predicted):
        measured = counts[:, first : first + len(names)]
        difference = np.abs(weights @ values.reshape(mask.size, -1) - measured).mean(0)
        tables.append(pd.DataFrame({"gene": names, "spot_error": difference / np.maximum(measured.mean(0), 1e-300)}))
        first += len(names)
    return pd.concat(tables, ignore_index=True)
