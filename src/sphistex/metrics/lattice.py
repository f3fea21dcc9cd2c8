"""Maps of some genes at a time, out of whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree

if TYPE_CHECKING:
    from anndata import AnnData

Values: TypeAlias = NDArray | sparse.spmatrix | sparse.sparray
# Genes whose maps are in memory at once.
_GENES_AT_ONCE = 32
# A truth is coarse where all but few places lie farther apart than this many superpixels.
_APART, _FEW = 1.2, 0.05


def maps(values: Values, mask: NDArray[np.bool_], genes: slice) -> NDArray:
    """Maps (rows, columns, n_genes) of some genes.

    Parameters
    ----------
    values
        (rows, columns, n_genes), or (n_superpixels, n_genes), dense or sparse, of all superpixels of the grid or of
        those inside the mask, row by row.
    mask
        (rows, columns).
    genes
        Which of the genes.

    Raises
    ------
    ValueError
        If ``values`` fits neither the grid nor the mask.
    """
    if isinstance(values, np.ndarray) and values.ndim == 3 and values.shape[:2] == mask.shape:
        return values[..., genes]
    if values.ndim != 2 or values.shape[0] not in (mask.size, mask.sum()):
        raise ValueError(
            f"values of shape {values.shape} do not fit mask {mask.shape}: give (rows, columns, n_genes), or "
            f"(n_superpixels, n_genes) of all {mask.size:,} superpixels or of the {mask.sum():,} inside the mask."
        )
    chosen = values[:, genes] if isinstance(values, np.ndarray) else sparse.csc_array(values)[:, genes].toarray()
    if len(chosen) == mask.size:
        return chosen.reshape(*mask.shape, -1)
    out = np.zeros((*mask.shape, chosen.shape[1]), dtype=chosen.dtype)
    out[mask] = chosen
    return out


def coarsening(mask: NDArray[np.bool_], factor: int, *, min_share: float = 0.5) -> sparse.csr_matrix:
    """:func:`sphistex.metrics.coarsen` as a sparse matrix (n_blocks, n_superpixels) on the superpixels of the mask.

    Examples
    --------
    >>> mask = np.array([[True, True, False, False], [True, True, True, False]])
    >>> coarsening(mask, 2).toarray().astype(int).tolist()
    [[1, 1, 1, 1, 0]]
    """
    n_rows, n_columns = (size // factor for size in mask.shape)
    row, column = (place // factor for place in np.nonzero(mask))
    complete = np.flatnonzero((row < n_rows) & (column < n_columns))
    _, block, area = np.unique(row[complete] * n_columns + column[complete], return_inverse=True, return_counts=True)
    counts = area >= max(min_share, 1e-9) * factor**2
    kept, place = counts[block], np.cumsum(counts) - 1
    entries = np.ones(int(kept.sum()), dtype=np.float32), (place[block[kept]], complete[kept])
    return sparse.csr_matrix(entries, shape=(int(counts.sum()), len(row)))


def blocks(
    mask: NDArray[np.bool_], genes: Sequence[str] | None, *values: Values
) -> Iterator[tuple[list[str], list[NDArray]]]:
    """Names of a few genes at a time and their maps of each of ``values``; memory does not grow with the genes.

    Raises
    ------
    ValueError
        If the numbers of genes differ.
    """
    n_genes = values[-1].shape[-1]
    names = [str(i) for i in range(n_genes)] if genes is None else list(genes)
    if {x.shape[-1] for x in values} != {len(names)}:
        numbers = " and ".join(str(x.shape[-1]) for x in values)
        raise ValueError(f"values have {numbers} genes, and genes names {len(names)}: they must be the same genes.")
    by_gene = [x if isinstance(x, np.ndarray) else sparse.csc_array(x) for x in values]
    for first in range(0, n_genes, _GENES_AT_ONCE):
        part = slice(first, first + _GENES_AT_ONCE)
        yield names[part], [maps(x, mask, part) for x in by_gene]


def from_tables(
    predicted: AnnData, truth: AnnData, *, layer: str | None = None, pitch_px: float | None = None
) -> tuple[Any, Any, NDArray[np.bool_], list[str]]:
    """Two tables of superpixels as arrays of the genes and the superpixels that both have.

    Parameters
    ----------
    predicted
        Result of :func:`sphistex.tl.super_resolve`; of a lazy one all genes are computed, so choose some first.
    truth
        What was measured, with ``obsm["spatial"]`` in the same pixels; what lies in one superpixel is summed, so that
        it may be finer than the result.
    layer
        Layer of the truth; None takes ``X``.
    pitch_px
        Side of a superpixel in pixels; None takes it from ``predicted.uns``.

    Returns
    -------
    Predicted and true values (n_superpixels, n_genes), the mask (rows, columns) that they lie in, row by row, and the
    genes: what the other functions here take.

    Raises
    ------
    KeyError
        If ``pitch_px`` is not given and not recorded in the result.
    ValueError
        If the tables have no gene or no superpixel in common, or the truth is coarser than the superpixels.
    """
    pitch = _recorded_pitch_px(predicted) if pitch_px is None else pitch_px
    genes = [str(gene) for gene in predicted.var_names if gene in truth.var_names]
    if not genes:
        raise ValueError("the predicted and the true table have no gene in common.")
    places = [np.asarray(table.obsm["spatial"], dtype=float) for table in (predicted, truth)]
    check_fine(places[1], pitch)
    rows, columns = (int(number) for number in np.vstack(places).max(0)[::-1] // pitch + 1)
    of_predicted, of_truth = (superpixels_of(xy, pitch, (rows, columns)) for xy in places)
    both = (np.diff(of_predicted.indptr) > 0) & (np.diff(of_truth.indptr) > 0)
    if not both.any():
        raise ValueError("the predicted and the true table have no superpixel in common: is obsm['spatial'] in pixels?")
    from sphistex._checks import check_open  # here, so that the computing core runs where there is no anndata

    check_open(predicted, "predicted")
    true = truth[:, genes]
    values = (
        of_predicted[both] @ _in_memory(predicted[:, genes].X),
        of_truth[both] @ _in_memory(true.X if layer is None else true.layers[layer]),
    )
    return *values, both.reshape(rows, columns), genes


def _in_memory(values: Any) -> Any:
    """An array or a sparse matrix, also of what dask would compute later."""
    return values.compute() if hasattr(values, "compute") else values


def superpixels_of(xy_px: NDArray, pitch_px: float, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Which places (n, 2), in pixels, lie in which superpixel: (n_superpixels, n) of ones, which sums what is finer."""
    column, row = np.floor(np.asarray(xy_px) / pitch_px).astype(np.int64).T
    inside = np.flatnonzero((row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1]))
    number = row[inside] * shape[1] + column[inside]
    ones = np.ones(len(inside), np.float32)
    return sparse.csr_matrix((ones, (number, inside)), shape=(shape[0] * shape[1], len(row)))


def check_fine(xy_px: NDArray, pitch_px: float) -> None:
    """Refuse a truth whose places (n, 2), in pixels, lie farther apart than the superpixels.

    Raises
    ------
    ValueError
        If nearly all places are farther from the next than a superpixel is wide.
    """
    if len(xy_px) < 2:
        return
    apart = float(np.quantile(KDTree(xy_px).query(xy_px, k=2)[0][:, 1], _FEW))
    if apart > _APART * pitch_px:
        raise ValueError(
            f"the truth was measured every {apart:.4g} px, which is coarser than the superpixels of {pitch_px:.4g} px: "
            "nothing says how it is shared out between them; give a truth at 8 µm or finer."
        )


def _recorded_pitch_px(table: AnnData) -> float:
    for made in table.uns.values():
        if isinstance(made, dict) and {"pitch_um", "mpp"} <= set(made):
            return float(made["pitch_um"]) / float(made["mpp"])
    raise KeyError("predicted.uns records no superpixel size (pitch_um and mpp): give pitch_px.")
