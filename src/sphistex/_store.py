"""Adding elements to a SpatialData object in memory and, where it is backed, on disk, whole or not at all.

A new element is written in full into a temporary store beside the user's and then renamed into place, so that an
interruption at any time leaves a store that can be read, with the old element until the new one is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from spatialdata import SpatialData

Kind = Literal["images", "labels", "shapes", "tables"]


def add_element(sdata: SpatialData, kind: Kind, name: str, element: Any, *, overwrite: bool = False) -> None:
    """Add an element in memory and, if ``sdata`` is backed, to its store.

    Parameters
    ----------
    sdata
        The object to add to.
    kind
        Container of the element.
    name
        Key of the element.
    element
        A valid SpatialData element of that kind.
    overwrite
        Replace an element of the same name and kind.

    Raises
    ------
    ValueError
        If there is an element of that name (and ``overwrite`` is False, or it is of another kind).
    OSError
        If the store cannot be written; neither it nor ``sdata`` is changed then.
    """
    check_free(sdata, kind, name, overwrite=overwrite)
    if sdata.is_backed():
        staged = staging_path(sdata.path, f"{kind}-{name}")
        shutil.rmtree(staged, ignore_errors=True)
        try:
            write_store(staged, kind, name, element, beside=sdata.path)
            move_into_store(staged, sdata.path, kind, name)
        except OSError as error:
            message = f"{kind}[{name!r}] could not be written to {sdata.path}, which is unchanged: {error.strerror}"
            raise OSError(error.errno, message) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    attach(sdata, kind, name, element)


def record(sdata: SpatialData, key: str, params: dict[str, Any]) -> None:
    """Keep in ``sdata.attrs["sphistex"][key]``, also on disk, with which parameters the element ``key`` was made."""
    before = sdata.attrs
    sdata.attrs = before | {"sphistex": before.get("sphistex", {}) | {key: params}}
    if sdata.is_backed():
        try:
            sdata.write_attrs(sdata_format=_container_format(sdata.path))
        except BaseException:
            sdata.attrs = before
            raise
        consolidate(sdata.path)


def check_free(sdata: SpatialData, kind: Kind, name: str, *, overwrite: bool) -> None:
    """Raise a ValueError (a TypeError of what is no string) if ``name`` cannot be added as an element of that kind."""
    check_name(name)
    kinds = [other for other in ("images", "labels", "points", "shapes", "tables") if name in getattr(sdata, other)]
    if any(other != kind for other in kinds):
        raise ValueError(
            f"key_added={name!r} is already the name of an element in sdata.{kinds[0]}; choose another one"
        )
    if overwrite:
        return
    if kinds:
        raise ValueError(f"key_added={name!r} exists in sdata.{kind}; pass overwrite=True to replace it")
    if sdata.is_backed() and (Path(sdata.path) / kind / name).exists():
        raise ValueError(f"key_added={name!r} exists on disk in {sdata.path}/{kind}; pass overwrite=True to replace it")


def check_apart(name: str, planned: Iterable[str]) -> None:
    """Raise a ValueError if ``name`` is also that of an element which will be made on the way."""
    if name in planned:
        raise ValueError(f"key_added={name!r} is the name of an element that is made on the way; choose another one")


def check_name(name: str) -> None:
    """Raise what SpatialData would of a name that it cannot store, when it is used and not after all the work."""
    from spatialdata._core.validation import check_valid_name

    try:
        check_valid_name(name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"key_added={name!r} cannot be stored: {error}") from error


def staging_path(store: Path, tag: str) -> Path:
    """Hidden folder beside ``store``, and so on the same file system, for what is on its way into it."""
    return Path(store).with_name(f".{Path(store).name}.{tag}")


def write_store(path: Path, kind: Kind, name: str, element: Any, *, beside: Path | None = None) -> None:
    """Write a store that holds one element, in the Zarr format of the store ``beside``."""
    from spatialdata import SpatialData

    container = None if beside is None else _container_format(beside)
    with warnings.catch_warnings():
        # A table alone in a store annotates elements that are not in it; they are where it goes.
        warnings.filterwarnings("ignore", message=".*annotat.*not present.*", category=UserWarning)
        SpatialData(**{kind: {name: element}}).write(path, sdata_formats=container)


def move_into_store(staged: Path, store: Path, kind: Kind, name: str) -> None:
    """Rename a complete element of the store ``staged`` into ``store``, in the place of the old one if there is one."""
    import zarr

    source, target = Path(staged) / kind / name, Path(store) / kind / name
    group = zarr.open_group(store, mode="r+", use_consolidated=False).require_group(kind)
    if kind == "labels":
        _list_label(group, name)
    # From here to the end readers must look at the folders themselves: a summary would list what is not there.
    _drop_consolidated_metadata(Path(store))
    if target.exists():
        os.rename(target, Path(staged) / "replaced")
    os.rename(source, target)
    consolidate(store)


def remove_element(sdata: SpatialData, kind: Kind, name: str) -> None:
    """Remove an element in memory and from the store, if there is one of that name."""
    if name in getattr(sdata, kind):
        del getattr(sdata, kind)[name]
    if sdata.is_backed() and (element := Path(sdata.path) / kind / name).exists():
        gone = staging_path(sdata.path, f"{kind}-{name}-removed")
        _drop_consolidated_metadata(Path(sdata.path))
        os.rename(element, gone)
        consolidate(sdata.path)
        shutil.rmtree(gone, ignore_errors=True)


def attach(sdata: SpatialData, kind: Kind, name: str, element: Any) -> None:
    """Put an element into ``sdata`` in memory, in the place of one of the same name if there is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*already exists. Overwriting it in-memory.*")
        warnings.filterwarnings("ignore", message=".*annotat.*not present.*", category=UserWarning)
        getattr(sdata, kind)[name] = element


def consolidate(store: Path) -> None:
    """Write the summary of all metadata that lets a store be opened with one read."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)  # parquet files, .partial files
        zarr.consolidate_metadata(str(store))


def _container_format(store: Path) -> Any:
    """SpatialData's format of a store: that of Zarr 3, or the one before it."""
    from spatialdata._io.format import SpatialDataContainerFormats

    return SpatialDataContainerFormats["0.2" if (Path(store) / "zarr.json").exists() else "0.1"]


def _drop_consolidated_metadata(store: Path) -> None:
    if not (root := store / "zarr.json").exists():
        (store / ".zmetadata").unlink(missing_ok=True)
        return
    metadata = json.loads(root.read_text())
    if metadata.pop("consolidated_metadata", None) is not None:
        complete = store / ".zarr.json.new"
        complete.write_text(json.dumps(metadata, indent=2))
        os.replace(complete, root)


def _list_label(group: Any, name: str) -> None:
    """OME-Zarr wants all label images named in the attributes of their group."""
    attrs = group.attrs.asdict()
    holder = attrs.setdefault("ome", {}) if group.metadata.zarr_format == 3 else attrs
    if name not in holder.get("labels", []):
        holder["labels"] = [*holder.get("labels", []), name]
        group.attrs.update(attrs)
