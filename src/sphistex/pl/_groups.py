"""Groups of spots by name, and their colours."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from anndata import AnnData
from matplotlib.colors import is_color_like

from sphistex.tl._spots import in_order


def find_groups(table: AnnData, name: str, argument: str, column: str) -> pd.Series:
    """Group of each spot (n_obs,), a categorical of strings, from a column of ``obs``.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If it holds numbers, or nothing.
    """
    named = [other for other in table.obs if not pd.api.types.is_numeric_dtype(table.obs[other])]
    if column not in table.obs:
        raise KeyError(f"{argument}={column!r} is not among the obs columns of table {name!r}; with names are {named}")
    found = table.obs[column]
    is_bool = pd.api.types.is_bool_dtype(found)
    if pd.api.types.is_numeric_dtype(found) and not is_bool:
        raise ValueError(f"{argument}={column!r} of table {name!r} holds numbers, not names; with names are {named}")
    if not found.notna().any():
        raise ValueError(f"{argument}={column!r} of table {name!r} is empty")
    ordered = in_order(found)
    kept = found.notna()
    return found.astype(str).where(kept).astype(pd.CategoricalDtype([str(category) for category in ordered]))


def group_colours(
    groups: list[pd.Series], tables: list[tuple[AnnData, str]], palette: Mapping[str, str] | None
) -> dict[str, str]:
    """Colour of each name in any of the groups, which come from these tables and columns.

    Raises
    ------
    ValueError
        If the palette holds what is no colour.
    """
    names = list(dict.fromkeys(name for group in groups for name in group.cat.categories))
    some = mpl.colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    colours = {name: mpl.colors.to_hex(some[place % len(some)]) for place, name in enumerate(names)}
    for group, (table, column) in reversed(list(zip(groups, tables, strict=True))):
        kept = list(table.uns.get(f"{column}_colors", []))
        if len(kept) == len(group.cat.categories):
            colours |= dict(zip(group.cat.categories, kept, strict=True))
    colours |= {str(name): colour for name, colour in (palette or {}).items() if str(name) in colours}
    if wrong := [colour for colour in colours.values() if not is_color_like(colour)]:
        raise ValueError(f"palette: {wrong[:3]} are no colours of Matplotlib")
    return colours
