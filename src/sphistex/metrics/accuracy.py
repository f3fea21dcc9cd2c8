"""Correlation per gene between predicted and true maps, at several scales, beside the noise ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from sphistex.metrics.lattice import Values, blocks
from sphistex.metrics.thinning import thin_counts

Statistic: TypeAlias = Literal["pearson", "spearman"]


def coarsen(
    values: NDArray, mask: NDArray[np.bool_], factor: int, *, min_share: float = 0.5
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Sum superpixels over square blocks.

    Parameters
    ----------
    values
        (rows, columns) or (rows, columns, n_genes), counts per superpixel.
    mask
        (rows, columns), the superpixels that count.
    factor
        Side of a block in superpixels; an incomplete last row or column of blocks is left out.
    min_share
        A block counts when at least this share of it is inside the mask; 1 means entirely.

    Returns
    -------
    Sums (n_blocks, n_genes) of the blocks that count, and which blocks these are (block rows, block columns).

    Examples
    --------
    >>> import numpy as np
    >>> sums, kept = coarsen(np.ones((4, 4)), np.ones((4, 4), bool), 2)
    >>> sums.ravel().tolist()
    [4.0, 4.0, 4.0, 4.0]
    """
    rows, columns = (size // factor for size in mask.shape)
    values = values.reshape(*mask.shape, -1)[: rows * factor, : columns * factor]
    mask = mask[: rows * factor, : columns * factor]
    kept = mask.reshape(rows, factor, columns, factor).mean((1, 3)) >= max(min_share, 1e-9)
    blocks = np.where(mask[..., None], values, 0).reshape(rows, factor, columns, factor, -1)
    return blocks.sum((1, 3), dtype=np.float64)[kept], kept


def pearson(predicted: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Pearson r of each column of two (n, n_genes) arrays; NaN where the truth is constant, 0 where the prediction is.

    Examples
    --------
    >>> import numpy as np
    >>> pearson(np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [4.0], [6.0]])).round(3).tolist()
    [1.0]
    """
    predicted, truth = (x - x.mean(0, dtype=np.float64) for x in (predicted, truth))
    norm_p, norm_t = np.linalg.norm(predicted, axis=0), np.linalg.norm(truth, axis=0)
    r = np.einsum("ng,ng->g", predicted, truth) / np.maximum(norm_p * norm_t, 1e-300)
    return np.where(norm_t == 0, np.nan, np.where(norm_p == 0, 0.0, r))


def spearman(predicted: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Spearman's rank correlation of each column of two (n, n_genes) arrays; NaN and 0 as for Pearson's r.

    Examples
    --------
    >>> import numpy as np
    >>> spearman(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [10.0], [100.0]])).round(3).tolist()
    [1.0]
    """
    return pearson(rankdata(predicted, axis=0), rankdata(truth, axis=0))


_STATISTICS = {"pearson": pearson, "spearman": spearman}


def correlation_by_scale(
    predicted: Values,
    truth: Values,
    mask: NDArray[np.bool_],
    *,
    genes: Sequence[str] | None = None,
    factors: Sequence[int] = (1, 2, 4, 8),
    pitch_um: float = 8.0,
    min_share: float = 0.5,
    statistics: Sequence[Statistic] = ("pearson", "spearman"),
    ceiling: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Correlation per gene and scale between a predicted and a true map.

    Parameters
    ----------
    predicted, truth
        Counts per superpixel: (rows, columns, n_genes), or (n_superpixels, n_genes), dense or sparse, of all
        superpixels of the grid or of those inside the mask, row by row.
    mask
        (rows, columns), the superpixels that are scored (tissue, or tissue outside every spot).
    genes
        Names of the genes.
    factors
        Block sides in superpixels.
    pitch_um
        Side of a superpixel in µm.
    min_share
        Share of a block that must be inside the mask (see :func:`coarsen`).
    statistics
        Which correlations. Spearman's takes much longer, as it ranks every map.
    ceiling
        What :func:`noise_ceiling` says of the same genes and scales.

    Returns
    -------
    Tidy table with columns ``gene``, ``scale_um`` and one for each statistic; a few genes are in memory at once. With a
    ceiling also ``ceiling``, and ``ceiling_share``: what share of it Pearson's r reaches, NaN where it is 0.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or the ceiling is that of other genes or scales.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.random.default_rng(0).poisson(3.0, (16, 16, 2))
    >>> table = correlation_by_scale(truth, truth, np.ones((16, 16), bool), factors=(1, 2))
    >>> table.pearson.round(3).tolist(), table.spearman.round(3).tolist()
    ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    """
    parts = []
    for names, values in blocks(mask, genes, predicted, truth):
        for factor in factors:
            sums = [coarsen(x, mask, factor, min_share=min_share)[0] for x in values]
            part = pd.DataFrame({"gene": names, "scale_um": factor * pitch_um})
            parts.append(part.assign(**{str(name): _STATISTICS[name](*sums) for name in statistics}))
    table = pd.concat(parts, ignore_index=True)
    table = table.sort_values("scale_um", kind="stable", ignore_index=True)
    return table if ceiling is None else _with_share(table, ceiling)


def _with_share(table: pd.DataFrame, ceiling: pd.DataFrame) -> pd.DataFrame:
    both = table.merge(ceiling, on=["gene", "scale_um"])
    if len(both) != len(table) or "pearson" not in both:
        raise ValueError(
            "ceiling must be that of the same genes, factors and pitch_um, and statistics must include 'pearson'"
        )
    return both.assign(ceiling_share=both.pearson / both.ceiling.where(both.ceiling > 0))


def noise_ceiling(
    truth: Values,
    mask: NDArray[np.bool_],
    *,
    genes: Sequence[str] | None = None,
    independent_half: bool = False,
    seed: int = 0,
    **kwargs: object,
) -> pd.DataFrame:
    """Largest Pearson r that the noise of the truth allows, per gene and scale.

    The truth is thinned into two halves that correlate with r. Against the whole truth the ceiling is
    √(2r / (1 + r)) (Spearman–Brown); against one half (``independent_half``) it is √r.

    Parameters
    ----------
    truth, mask, genes, kwargs
        As in :func:`correlation_by_scale`.
    independent_half
        Whether predictions are scored against one half only.
    seed
        Seed of the thinning.

    Returns
    -------
    Table with columns ``gene``, ``scale_um``, ``ceiling``; a few genes are in memory at once.

    Raises
    ------
    ValueError
        If the truth does not fit the mask, or its counts are not whole numbers.

    Examples
    --------
    >>> rates = np.random.default_rng(0).gamma(2.0, 2.0, (16, 16, 2))
    >>> truth, mask = np.random.default_rng(1).poisson(rates), np.ones((16, 16), bool)
    >>> ceiling = noise_ceiling(truth, mask, factors=(1,))
    >>> table = correlation_by_scale(rates, truth, mask, factors=(1,), ceiling=ceiling)
    >>> bool(table.ceiling_share.between(0.9, 1.1).all())
    True
    """
    draws, parts = np.random.default_rng(seed), []
    for names, (whole,) in blocks(mask, genes, truth):
        halves = thin_counts(whole[mask], seed=int(draws.integers(2**32)))
        parts.append(correlation_by_scale(*halves, mask, genes=names, statistics=("pearson",), **kwargs))  # type: ignore[arg-type]
    table = pd.concat(parts, ignore_index=True).sort_values("scale_um", kind="stable", ignore_index=True)
    r = table.pop("pearson").clip(lower=0)
    table["ceiling"] = np.sqrt(r if independent_half else 2 * r / (1 + r))
    return table
