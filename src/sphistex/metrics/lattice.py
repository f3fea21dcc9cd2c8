"""Maps of some genes at a time, out of whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

Values: TypeAlias = NDArray | sparse.spmatrix | sparse.sparray
# Genes whose maps are in memory at once.
_GENES_AT_ONCE = 32


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
        Result of :func:`sphistex.tl.super_resolve`.
    truth
        What was measured, one row per superpixel, with ``obsm["spatial"]`` in the same pixels.
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
        If the tables have no gene or no superpixel in common.
    """
    pitch = _recorded_pitch_px(predicted) if pitch_px is None else pitch_px
    genes = [str(gene) for gene in predicted.var_names if gene in truth.var_names]
    if not genes:
        raise ValueError("the predicted and the true table have no gene in common.")
    places = [np.floor(np.asarray(t.obsm["spatial"])[:, ::-1] / pitch).astype(np.int64) for t in (predicted, truth)]
    shape = tuple(np.maximum(*(p.max(0) for p in places)) + 1)
    numbers = [np.ravel_multi_index(tuple(p.T), shape) for p in places]
    both, of_predicted, of_truth = np.intersect1d(numbers[0], numbers[1], assume_unique=True, return_indices=True)
    if not len(both):
        raise ValueError("the predicted and the true table have no superpixel in common: is obsm['spatial'] in pixels?")
    mask = np.zeros(shape, dtype=bool)
    mask.ravel()[both] = True
    true = truth[of_truth, genes]
    return predicted[of_predicted, genes].X, true.X if layer is None else true.layers[layer], mask, genes


def _recorded_pitch_px(table: AnnData) -> float:
    for made in table.uns.values():
        if isinstance(made, dict) and {"pitch_um", "mpp"} <= set(made):
            return float(made["pitch_um"]) / float(made["mpp"])
    raise KeyError("predicted.uns records no superpixel size (pitch_um and mpp): give pitch_px.")
