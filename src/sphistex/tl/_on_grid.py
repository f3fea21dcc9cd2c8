"""Maps of superpixels on their grid: smoothed, and freed of small fragments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter, label


def smoothed(values: NDArray[np.float32], mask: NDArray[np.bool_], sigma: float) -> NDArray[np.float32]:
    """Values (n_superpixels, n) of the tissue, each the mean of those around it, weighted by a Gaussian.

    Parameters
    ----------
    values
        Of the superpixels inside the mask, row by row.
    mask
        The tissue (rows, columns); what lies outside of it counts for nothing.
    sigma
        Of the Gaussian, in superpixels.
    """
    share = gaussian_filter(mask.astype(np.float32), sigma, mode="constant")[mask]
    out, raster = np.empty_like(values), np.zeros(mask.shape, dtype=np.float32)
    for column in range(values.shape[1]):
        raster[mask] = values[:, column]
        out[:, column] = gaussian_filter(raster, sigma, mode="constant")[mask] / share
    return out


def without_fragments(codes: NDArray[np.intp], mask: NDArray[np.bool_], smallest: float) -> NDArray[np.intp]:
    """Labels of superpixels, with small fragments merged into the label that borders them most.

    A fragment is a set of superpixels with the same label that share sides. From the outside in, those that touch a
    larger one are merged into it; what touches none, an island of tissue, stays as it is.

    Parameters
    ----------
    codes
        Labels from 0 on of the superpixels inside the mask, row by row.
    mask
        The tissue (rows, columns).
    smallest
        Fragments of fewer superpixels are small.
    """
    raster = np.full(mask.shape, -1, dtype=np.intp)
    raster[mask] = codes
    n_labels = int(codes.max()) + 1
    while True:
        fragment, of_label = _fragments(raster, n_labels)
        small = np.bincount(fragment[mask], minlength=len(of_label)) < smallest
        n = len(of_label)
        of_large = sparse.csr_matrix(((~small).astype(float), (np.arange(n), of_label)), shape=(n, n_labels))
        sides = (_borders(fragment, n)[small] @ of_large).tocsr()
        touching = sides.max(1).toarray().ravel() > 0
        if not touching.any():
            return raster[mask]
        of_label[np.flatnonzero(small)[touching]] = np.asarray(sides[touching].argmax(1)).ravel()
        raster[mask] = of_label[fragment[mask]]


def _fragments(raster: NDArray[np.intp], n_labels: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Number of the fragment of each superpixel (rows, columns), -1 outside of the tissue; and each one's label."""
    fragment, of_label = np.full(raster.shape, -1, dtype=np.intp), [np.empty(0, dtype=np.intp)]
    n_fragments = 0
    for code in range(n_labels):
        inside = raster == code
        found, n_found = label(inside)
        fragment[inside] = found[inside] + n_fragments - 1
        of_label.append(np.full(n_found, code))
        n_fragments += n_found
    return fragment, np.concatenate(of_label)


def _borders(fragment: NDArray[np.intp], n_fragments: int) -> sparse.csr_matrix:
    """Sides that fragments share (n_fragments, n_fragments)."""
    pairs = [
        np.stack([first.ravel(), second.ravel()])
        for first, second in ((fragment[:-1], fragment[1:]), (fragment[:, :-1], fragment[:, 1:]))
    ]
    first, second = np.hstack(pairs)
    met = (first != second) & (first >= 0) & (second >= 0)
    one_way = sparse.coo_matrix((np.ones(int(met.sum())), (first[met], second[met])), shape=(n_fragments, n_fragments))
    return sparse.csr_matrix(one_way + one_way.T)
