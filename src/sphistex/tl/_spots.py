"""Spots that are chosen, or put into groups, by a column of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

# A boolean column, or a column and those of its values that are meant.
Choice = str | tuple[str, str | int | Sequence[str | int]]


def chosen_spots(table: AnnData, name: str, argument: str, choice: Choice) -> NDArray[np.bool_]:
    """Spots (n_obs,) that are meant by a boolean column, or by a column and one or several of its values.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a column alone is not boolean, or does not hold the values.
    """
    if not isinstance(choice, str) and not (isinstance(choice, tuple | list) and len(choice) == 2):
        given = repr(choice) if np.isscalar(choice) or choice is None else f"a {type(choice).__name__}"
        raise ValueError(
            f"{argument} is {given}: give the name of a boolean column of obs, or such a name and a list of values"
        )
    column, values = (choice, None) if isinstance(choice, str) else choice
    found = find_column(table, name, argument, column)
    held = sorted(map(str, found.dropna().unique()))
    if values is None:
        # a boolean column with missing values becomes one of objects when tables are merged
        if not pd.api.types.is_bool_dtype(found) and pd.api.types.infer_dtype(found) != "boolean":
            raise ValueError(
                f"{argument}={column!r} is not a boolean column: say which of its values are meant, such as "
                f"{argument}=({column!r}, {held[-1:]}); it holds {held[:20]}"
            )
        return np.asarray(found.eq(True).fillna(False), dtype=bool)
    wanted = as_list(choice)[1:]
    if missing := sorted(set(wanted) - set(held)):
        raise ValueError(f"{argument}={choice!r}: column {column!r} holds no {missing}, but {held[:20]}")
    return np.asarray(found.notna() & found.astype(str).isin(wanted), dtype=bool)


def as_list(choice: Choice) -> list[str]:
    """The column and, where they were said, its values, as they can be stored."""
    return [choice] if isinstance(choice, str) else [choice[0], *map(str, np.atleast_1d(choice[1]))]


def find_column(table: AnnData, name: str, argument: str, column: str) -> pd.Series:
    """A column of ``obs``.

    Raises
    ------
    KeyError
        If there is none of that name.
    """
    if column not in table.obs:
        raise KeyError(f"{argument}={column!r} is not among the obs columns of table {name!r}: {list(table.obs)}")
    return table.obs[column]


def grouped_spots(table: AnnData, name: str, column: str) -> pd.Series:
    """Group of each spot that has one, by the place of the spot in the table; the categories in their own order.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If there are fewer than two groups, or one is a single spot.
    """
    found = find_column(table, name, "groupby", column)
    ordered = in_order(found)
    size = found.value_counts()
    names = [str(group) for group in ordered if size.get(group, 0)]
    if len(names) < 2:
        raise ValueError(
            f"groupby={column!r} has {len(names)} groups in table {name!r}, {names}: at least two are compared"
        )
    if lone := [str(group) for group in ordered if size.get(group, 0) == 1]:
        raise ValueError(
            f"groupby={column!r}: {len(lone)} of the {len(names)} groups are one spot each, and do not vary, such as "
            f"{lone[:5]}; set them to NaN, or group by names, not by measurements"
        )
    by_place = found.reset_index(drop=True)
    return by_place[by_place.notna()].astype(str).astype(pd.CategoricalDtype(names))


def in_order(column: pd.Series) -> list[Any]:
    """Each value of a column once: categories in their order, others sorted, numbers before names."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(column.cat.categories)
    return sorted(column.dropna().unique(), key=lambda value: (isinstance(value, str), value))
