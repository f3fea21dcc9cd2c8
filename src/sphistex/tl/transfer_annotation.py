"""What was annotated in spots, for superpixels."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from spatialdata import SpatialData

from sphistex._checks import is_number
from sphistex._section import Section
from sphistex.tl._annotate import annotate as add_to_table
from sphistex.tl._annotate import check_own
from sphistex.tl._expression import Expression
from sphistex.tl._principal import principal_components
from sphistex.tl._results import find_result, section_of, spot_of_each
from sphistex.tl._spots import find_column
from sphistex.tl.fit import check_seed

_N_COMPONENTS = 20
# Superpixels of spots that the model is fitted to; parts of the spots that are left out in turn.
_N_FITTED, _N_PARTS = 50_000, 5
_FEWEST_SPOTS = _N_PARTS


def transfer_annotation(
    sdata: SpatialData,
    column: str,
    *,
    table_key: str = "superres",
    trust: float = 0.9,
    key_added: str | None = None,
    seed: int | None = None,
) -> None:
    """Give superpixels the classes that spots were annotated with, such as a pathologist's.

    A multinomial logistic regression learns from the superpixels inside of annotated spots how classes differ in 20
    principal components of expression, and says of every superpixel how probable each class is. Inside of an
    annotated spot this is weighed against the spot's own class, to which ``trust`` gives so much prior probability: a
    superpixel of a spot that was annotated as tumour is stroma only if its expression says so clearly.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`, and the spots that it was made from.
    column
        Column with the classes, in ``obs`` of the spots' table. Spots without a value are not learnt from.
    table_key
        Name of the result.
    trust
        Prior probability of a spot's class for the superpixels inside of it, above 0 and below 1; the other classes
        share the rest alike.
    key_added
        Column of ``obs`` to add; by default ``column``. What an earlier call added is replaced.
    seed
        Seed of everything random; by default that of the settings.

    Returns
    -------
    Nothing. To the table of the result are added:

    - ``obs[key_added]``: categorical, the most probable class of each superpixel;
    - ``obs[key_added + "_probability"]``: how probable it is;
    - ``uns[key_added]``: ``params``, ``n_spots`` of each class, and ``held_out_accuracy``: the mean share over classes
      of the superpixels in spots that a model did not see, in fives of them, that it gives the spot's class. Guessing
      has 1 / number of classes.

    Raises
    ------
    KeyError
        If there is no such result or column, or what it was made from is gone.
    ValueError
        If there are fewer than two classes, one has fewer than five spots on the tissue of the result, or an argument
        makes no sense; before any computing.

    Notes
    -----
    Classes are those of spots: what is finer than a spot everywhere was never annotated, and is not found.
    Probabilities take neighbouring superpixels as independent, and are overconfident.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> spots = sdata.tables["counts"].obs
    >>> spots["side"] = ["left" if column < 7 else "right" for column in spots["array_col"]]  # a pathologist's
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> sx.tl.transfer_annotation(sdata, "side")
    >>> list(sdata.tables["superres"].obs["side"].cat.categories)
    ['left', 'right']
    """
    table, made = find_result(sdata, table_key)
    section = section_of(sdata, made, table_key)
    if not (is_number(trust) and 0 < trust < 1):
        raise ValueError(f"trust={trust!r} must lie between 0 and 1")
    seed = check_seed(seed)
    name = column if key_added is None else key_added
    there = name in table.obs or f"{name}_probability" in table.obs
    check_own(table, table_key, name, "transfer_annotation", there=there)
    spot = spot_of_each(sdata, section, table, made)
    classes = _classes(section, column, spot, table_key)
    names = list(classes.categories)
    annotated = np.where(spot >= 0, classes.codes[spot], -1)
    expression = Expression.of(table, table_key)

    points = principal_components(expression, _N_COMPONENTS, seed)
    seen = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(annotated >= 0))[:_N_FITTED])
    accuracy = _held_out_accuracy(points[seen], annotated[seen], spot[seen], len(names))
    prior = np.full((len(names) + 1, len(names)), (1 - trust) / (len(names) - 1))
    np.fill_diagonal(prior, trust)
    prior[-1] = 1.0  # of superpixels outside of annotated spots, whose class is -1
    probability = _fitted(points[seen], annotated[seen]).predict_proba(points) * prior[annotated]
    probability /= probability.sum(1, keepdims=True)
    record = {
        "made_by": "transfer_annotation",
        "params": {"column": column, "table_key": section.table_key, "trust": trust, "seed": seed},
        "n_spots": {one: int((classes == one).sum()) for one in names},
        "held_out_accuracy": accuracy,
    }
    found = pd.Categorical.from_codes(probability.argmax(1), names)
    add = partial(_add, found=found, probability=probability.max(1).astype(np.float32), record=record, name=name)
    add_to_table(sdata, table_key, add)


def _classes(section: Section, column: str, spot: NDArray[np.intp], table_key: str) -> pd.Categorical:
    """Class of each spot (n_spots,), missing where it has none, or no superpixel of the result.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If there are fewer than two classes, or one has hardly any spots.
    """
    found = find_column(section.table, section.table_key, "column", column)
    resolved = np.bincount(spot[spot >= 0], minlength=section.table.n_obs) > 0
    named = found.astype(object).where(found.notna() & resolved)
    size = named.value_counts()
    ordered = found.cat.categories if isinstance(found.dtype, pd.CategoricalDtype) else sorted(size.index, key=str)
    names = [one for one in ordered if size.get(one, 0)]
    if len(names) < 2:
        raise ValueError(
            f"column={column!r} of table {section.table_key!r} has {len(names)} classes in the spots of result "
            f"{table_key!r}, {names}: at least two can be told apart"
        )
    if few := {str(one): int(size[one]) for one in names if size[one] < _FEWEST_SPOTS}:
        some = dict(list(few.items())[:5])
        raise ValueError(
            f"column={column!r}: {len(few)} of the {len(names)} classes have fewer than {_FEWEST_SPOTS} spots in "
            f"result {table_key!r}, such as {some}, too few to learn from; set them to NaN, or join them with others"
        )
    return pd.Categorical(named, categories=names).rename_categories([str(one) for one in names])


def _fitted(points: NDArray[np.float32], classes: NDArray[np.integer]) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(points, classes)


def _held_out_accuracy(
    points: NDArray[np.float32], classes: NDArray[np.integer], spot: NDArray[np.intp], n_classes: int
) -> float:
    """Mean over classes of the share that is found in spots that were left out."""
    said = np.full(len(classes), -1)
    for fitted_to, left_out in StratifiedGroupKFold(_N_PARTS).split(points, classes, spot):
        said[left_out] = _fitted(points[fitted_to], classes[fitted_to]).predict(points[left_out])
    right = np.bincount(classes[said == classes], minlength=n_classes)
    return float((right / np.bincount(classes, minlength=n_classes)).mean())


def _add(
    table: AnnData, *, found: pd.Categorical, probability: NDArray[np.float32], record: dict[str, Any], name: str
) -> None:
    table.obs[name], table.obs[f"{name}_probability"] = found, probability
    table.uns[name] = record
    table.uns.pop(f"{name}_colors", None)
