"""RMSE and SSIM as the papers on super-resolved expression report them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sphistex.metrics.lattice import Values, blocks


def published(
    predicted: Values, truth: Values, mask: NDArray[np.bool_], *, genes: Sequence[str] | None = None
) -> pd.DataFrame:
    """RMSE and SSIM per gene, each map scaled to 0–1 by its minimum and maximum over the tissue (HISTEX, section 3.1).

    Both flatter sparse genes: one outlier sets the scale of a map, and an empty prediction matches an almost empty
    truth, so that a constant map often comes out ahead. Report them beside one, and choose nothing by them.

    Parameters
    ----------
    predicted, truth
        Counts per superpixel, (rows, columns, n_genes) or (n_superpixels, n_genes); see :func:`correlation_by_scale`.
    mask
        (rows, columns), the tissue. What lies outside is 0 on both maps, and does not count for the RMSE.
    genes
        Names of the genes.

    Returns
    -------
    Table with columns ``gene``, ``rmse`` and ``ssim``. SSIM has scikit-image's window of 7 × 7 superpixels, and is
    NaN on maps smaller than that.

    Examples
    --------
    >>> truth = np.random.default_rng(0).poisson(3.0, (16, 16, 1))
    >>> published(truth, truth, np.ones((16, 16), bool))[["rmse", "ssim"]].iloc[0].tolist()
    [0.0, 1.0]
    """
    rows = [
        (name, *_rmse_and_ssim(a[..., i], b[..., i], mask))
        for names, (a, b) in blocks(mask, genes, predicted, truth)
        for i, name in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=["gene", "rmse", "ssim"])


def _rmse_and_ssim(predicted: NDArray, truth: NDArray, mask: NDArray[np.bool_]) -> tuple[float, float]:
    from skimage.metrics import structural_similarity  # here, so that the computing core runs where there is none

    a, b = _scaled(predicted, mask), _scaled(truth, mask)
    rmse = float(np.sqrt(np.mean((a[mask] - b[mask]) ** 2)))
    ssim = float(structural_similarity(a, b, data_range=1.0)) if min(mask.shape) >= 7 else float("nan")
    return rmse, ssim


def _scaled(values: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A map on the scale 0–1 of its tissue, 0 outside it and where it is constant."""
    values = values.astype(np.float64)
    low, high = values[mask].min(), values[mask].max()
    return np.where(mask, (values - low) / max(high - low, 1e-300), 0.0)
