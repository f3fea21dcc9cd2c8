"""Adding to a table that is there already, in memory and on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from anndata import AnnData, read_zarr
from spatialdata import SpatialData

from sphistex._store import add_element, attach, check_name


def annotate(sdata: SpatialData, table_key: str, change: Callable[[AnnData], None]) -> None:
    """Make a change to a table in memory and, where it is stored, on disk; nothing else of either is touched."""
    table = sdata.tables[table_key]
    if sdata.is_backed() and (stored := Path(sdata.path) / "tables" / table_key).exists():
        # what the user made of the values in memory is no business of the store
        on_disk = read_zarr(stored)
        if on_disk.obs_names.equals(table.obs_names):
            change(on_disk)
            add_element(sdata, "tables", table_key, on_disk, overwrite=True)
            attach(sdata, "tables", table_key, table)
        else:
            warnings.warn(
                f"table {table_key!r} has other rows in {sdata.path} than in memory: only that in memory is added to",
                UserWarning,
                stacklevel=3,
            )
    change(table)


def check_own(table: AnnData, table_key: str, key_added: str, made_by: str, there: bool) -> None:
    """Refuse a name that cannot be stored, and to replace what was not made by this function.

    Raises
    ------
    TypeError, ValueError
        If ``key_added`` cannot be stored, or there is something of this name which ``made_by`` did not add.
    """
    check_name(key_added)
    record = table.uns.get(key_added, {})
    own = isinstance(record, dict) and record.get("made_by") == made_by
    if not own and (there or key_added in table.uns):
        raise ValueError(
            f"key_added={key_added!r} is in table {table_key!r} already, and not from sphistex.tl.{made_by}; choose "
            "another name"
        )
