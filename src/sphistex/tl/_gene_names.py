"""What to say where genes of two sources have no names in common."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?", re.IGNORECASE)


def why_unmatched(var: pd.DataFrame, others: Iterable[str], what: str) -> str:
    """Why the genes of a table match so few of ``others``, and what to do.

    Parameters
    ----------
    var
        ``var`` of the table.
    others
        Names of genes in the other source.
    what
        What the other source is, as the subject of a sentence.
    """
    others = list(others)
    in_table, in_others = _kind(var.index), _kind(others)
    said = f"The table has {in_table}, such as {list(var.index[:3])}; {what} {in_others}, such as {others[:3]}."
    known = set(others)
    if in_table == in_others and {_unversioned(name) for name in var.index} & {_unversioned(name) for name in others}:
        return f"{said} They differ in the versions of the ids, as in .3: leave these out in both"
    shared = {column: int(var[column].astype(str).isin(known).sum()) for column in var if var[column].dtype != float}
    if shared and shared[best := max(shared, key=lambda column: shared[column])]:
        return f"{said} var[{best!r}] holds {shared[best]} of these: set table.var_names = table.var[{best!r}]"
    if in_table == in_others and {str(name).upper() for name in var.index} & {name.upper() for name in others}:
        return f"{said} They differ in upper and lower case: are they of another species?"
    return said if in_table == in_others else f"{said} Use the same kind of names in both"


def _kind(names: Iterable[str]) -> str:
    some = list(names)[:1000]
    ensembl = sum(_ENSEMBL.fullmatch(str(name)) is not None for name in some)
    return "Ensembl ids" if ensembl > len(some) / 2 else "gene symbols"


def _unversioned(name: object) -> str:
    """An Ensembl id without its version; other names as they are."""
    return str(name).rpartition(".")[0] if _ENSEMBL.fullmatch(str(name)) and "." in str(name) else str(name)
