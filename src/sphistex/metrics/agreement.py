"""How well two annotations of the same places agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


class Agreement(NamedTuple):
    """What :func:`sphistex.metrics.agreement` found.

    Parameters
    ----------
    adjusted_rand_index
        1: the same regions, whatever they are called; 0: as alike as by chance.
    by_class
        One row per class of the reference: ``class``; ``n``, its places; ``label``, the found one that shares most of
        it, by ``jaccard``; ``n_label``, the places of that; ``n_both``; ``recall``, the share of the class that has
        the label; ``precision``, the share of the label that is of the class; ``jaccard``, both over either.
    """

    adjusted_rand_index: float
    by_class: pd.DataFrame


def agreement(found: ArrayLike, reference: ArrayLike) -> Agreement:
    """Compare an annotation with a reference, such as a pathologist's or a known truth.

    Parameters
    ----------
    found
        Label of each place (n,).
    reference
        Class of each place (n,). Places without a label or a class are left out. Two Series that name the same
        places in another order are matched by these names, all else one by one.

    Returns
    -------
    The adjusted Rand index of all, and how each class of the reference was found.

    Raises
    ------
    ValueError
        If they differ in length, have no place in common, or the reference has a single class there.

    References
    ----------
    Hubert and Arabie, Comparing partitions, Journal of Classification 1985.

    Examples
    --------
    >>> result = agreement(["1", "1", "2", "2", "2"], ["tumour", "tumour", "stroma", "stroma", None])
    >>> result.adjusted_rand_index
    1.0
    >>> result.by_class[["class", "label", "recall", "precision"]].values.tolist()
    [['stroma', '2', 1.0, 1.0], ['tumour', '1', 1.0, 1.0]]
    """
    from sklearn.metrics import adjusted_rand_score  # here, so that the computing core runs where there is none

    if isinstance(found, pd.Series) and isinstance(reference, pd.Series) and _reordered(found.index, reference.index):
        reference = reference.reindex(found.index)
    labels, classes = (pd.Series(np.asarray(values, dtype=object)) for values in (found, reference))
    if len(labels) != len(classes):
        raise ValueError(f"found has {len(labels)} places, reference {len(classes)}: they must be the same ones")
    both = labels.notna() & classes.notna()
    if not both.any():
        raise ValueError(f"of {len(labels)} places none has both a label in found and a class in reference")
    labels, classes = labels[both].astype(str), classes[both].astype(str)
    if classes.nunique() < 2:
        raise ValueError(
            f"reference has a single class, {classes.iloc[0]!r}, where there are labels: nothing can be told apart"
        )
    shared = pd.crosstab(classes, labels)
    of_class, of_label = shared.sum(axis=1), shared.sum(axis=0)
    counts = shared.to_numpy()
    jaccard = counts / (of_class.to_numpy()[:, None] + of_label.to_numpy()[None] - counts)
    best = jaccard.argmax(axis=1)
    rows = np.arange(len(shared))
    n_both, n_label = counts[rows, best], of_label.to_numpy()[best]
    by_class = pd.DataFrame(
        {
            "class": shared.index.to_numpy(),
            "n": of_class.to_numpy(),
            "label": shared.columns.to_numpy()[best],
            "n_label": n_label,
            "n_both": n_both,
            "recall": n_both / of_class.to_numpy(),
            "precision": n_both / n_label,
            "jaccard": jaccard[rows, best],
        }
    )
    return Agreement(float(adjusted_rand_score(classes, labels)), by_class)


def _reordered(first: pd.Index, second: pd.Index) -> bool:
    """Whether two indices name the same places in another order."""
    same = len(first) == len(second) and first.is_unique and second.is_unique
    return same and not first.equals(second) and bool(first.isin(second).all())
