"""What genes do on the way across a border."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse, stats
from spatialdata import SpatialData

from sphistex._checks import check_genes, check_open, is_number
from sphistex.tl._expression import find_table
from sphistex.tl._gene_blocks import gene_blocks
from sphistex.tl._superpixels import Superpixels


def profiles(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    table_key: str = "superres",
    distance_key: str = "distance_um",
    bin_um: float = 16.0,
    max_um: float | None = 200.0,
    block_um: float = 200.0,
    level: float = 0.95,
    layer: str | None = None,
) -> pd.DataFrame:
    """Mean of genes at each distance from a border.

    Neighbouring superpixels are alike, all the more where they are predicted, and say far less than as many independent
    ones. The section is therefore cut into squares, and the standard error is that of a ratio of sums over squares
    (cluster-robust): only squares count as independent.

    Parameters
    ----------
    sdata
        SpatialData with a table to which :func:`interface` added distances. It is not changed.
    genes
        One gene or several.
    table_key, distance_key
        Name of the table, and of its column of distances.
    bin_um
        Width of the bins; the border is where two of them meet.
    max_um
        How far from the border the middles of bins may lie, on both sides; None for all there is.
    block_um
        Side of the squares. Squares that hold what varies together make honest errors.
    level
        Of the confidence intervals, by Student's t of as many squares.
    layer
        Layer with the values; by default ``X``, expected counts per superpixel.

    Returns
    -------
    Table with one row per gene and bin: ``gene``, ``distance_um`` (the middle of the bin), ``mean``, ``se``, ``low``,
    ``high``, ``n_superpixels`` and ``n_blocks``. Bins without superpixels are left out; with a single square ``se``,
    ``low`` and ``high`` are NaN.

    Raises
    ------
    KeyError
        If there is no such table, column, layer or gene.
    ValueError
        If an argument makes no sense, or no superpixel is that near to the border.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> sx.tl.interface(sdata, ("compartment", "tumour"), table_key="truth")
    >>> gene = sdata.tables["truth"].var_names[0]
    >>> sx.tl.profiles(sdata, gene, table_key="truth", max_um=32)["distance_um"].tolist()
    [-24.0, -8.0, 8.0, 24.0]
    """
    table = find_table(sdata, table_key)
    check_open(table, table_key)
    chosen = check_genes(table, [genes] if isinstance(genes, str) else genes, table_key)
    if distance_key not in table.obs:
        raise KeyError(
            f"distance_key={distance_key!r} is no column of obs of table {table_key!r}: make it with "
            "sphistex.tl.interface"
        )
    if not pd.api.types.is_numeric_dtype(table.obs[distance_key]):
        raise ValueError(f"distance_key={distance_key!r} of table {table_key!r} holds no numbers")
    if layer is not None and layer not in table.layers:
        raise KeyError(f"layer={layer!r} is not in the layers of table {table_key!r}: {list(table.layers)}")
    _check_numbers(bin_um, max_um, block_um, level)
    superpixels = Superpixels.of(sdata, table, table_key)

    distance = table.obs[distance_key].to_numpy(float)
    used = np.flatnonzero(np.abs(np.floor(distance / bin_um) + 0.5) < (np.inf if max_um is None else max_um) / bin_um)
    if not len(used):
        raise ValueError(f"max_um={max_um!r}: no superpixel is that near to the border")
    bins = np.floor(distance[used] / bin_um).astype(np.int64)
    pairs, pair = np.unique(np.column_stack([bins, _blocks(superpixels, block_um)[used]]), axis=0, return_inverse=True)
    middles, of_pair = np.unique(pairs[:, 0], return_inverse=True)
    into_pairs = sparse.csr_matrix((np.ones(len(used)), (pair, used)), shape=(len(pairs), table.n_obs))
    into_bins = sparse.csr_matrix((np.ones(len(pairs)), (of_pair, np.arange(len(pairs)))))
    size = np.bincount(pair)
    found = []
    counts = table.X if layer is None else table.layers[layer]
    for part, values in gene_blocks(counts, table.var_names.get_indexer(chosen)):
        mean, error = _of_ratio(into_bins, into_pairs @ values, size[:, None])
        for number, gene in enumerate(chosen[part]):
            found.append(
                pd.DataFrame(
                    {
                        "gene": gene,
                        "distance_um": (middles + 0.5) * bin_um,
                        "mean": mean[:, number],
                        "se": error[:, number],
                        "n_superpixels": np.bincount(of_pair, size).astype(int),
                        "n_blocks": np.bincount(of_pair),
                    }
                )
            )
    table_of_all = pd.concat(found, ignore_index=True)
    reach = stats.t.ppf((1 + level) / 2, np.maximum(table_of_all["n_blocks"] - 1, 1)) * table_of_all["se"]
    table_of_all.insert(4, "low", table_of_all["mean"] - reach)
    table_of_all.insert(5, "high", table_of_all["mean"] + reach)
    return table_of_all


def _of_ratio(
    into_bins: sparse.csr_matrix, sums: NDArray[np.float64], sizes: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of each bin (n_bins, n_genes) and its standard error, from sums and sizes in each of its squares."""
    n_blocks, size = into_bins.sum(1).A1[:, None], into_bins @ sizes
    mean = (into_bins @ sums) / size
    left_over = sums - (into_bins.T @ mean) * sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(n_blocks > 1, n_blocks / (n_blocks - 1), np.nan)
    return mean, np.sqrt(factor * (into_bins @ left_over**2)) / size


def _blocks(superpixels: Superpixels, block_um: float) -> NDArray[np.int64]:
    """Number of the square (n_obs,) that each superpixel lies in."""
    row, column = np.divmod(superpixels.place, superpixels.shape[1])
    side = block_um / superpixels.pitch_um
    n_columns = int(superpixels.shape[1] / side) + 1
    return (row / side).astype(np.int64) * n_columns + (column / side).astype(np.int64)


def _check_numbers(bin_um: float, max_um: float | None, block_um: float, level: float) -> None:
    for name, value in (("bin_um", bin_um), ("max_um", max_um), ("block_um", block_um)):
        if value is not None and not (is_number(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be a positive number of µm")
    if not (is_number(level) and 0 < level < 1):
        raise ValueError(f"level={level!r} must lie between 0 and 1")
