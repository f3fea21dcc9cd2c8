"""Which sections are meant: one, those of several SpatialData objects, or several in one object."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

from sphistex._checks import check_genes
from sphistex._elements import candidates, choose_image, transforms_of
from sphistex._section import Section, resolve_section
from sphistex.tl._genes import choose_genes

ELEMENTS = ("image_key", "shapes_key", "table_key", "coordinate_system", "mpp", "spot_pitch_um")
# Spots of one model lie as far apart, up to this factor.
_SAME_PITCH = 1.1
_NAMED = 8


@dataclass(frozen=True)
class Placed:
    """A section, the object that it lies in, and the names of what is made of it there."""

    sdata: SpatialData
    section: Section
    features_key: str
    tissue_key: str
    key_added: str
    called: str


def resolve_sections(
    data: SpatialData | Sequence[SpatialData],
    sections: str | Mapping[str, Mapping[str, Any]] | None,
    elements: Mapping[str, Any],
    *,
    features_key: str,
    tissue_key: str,
    key_added: str = "",
    strict: bool,
) -> list[Placed]:
    """Find and check every section; nothing is changed.

    Parameters
    ----------
    data
        An object with one section, several of them, or one with several ``sections``.
    sections
        Of one object: elements of each section by its name, or the column of a table's ``obs`` that holds the names.
        What is made of a section gets ``_<name>`` behind its own name.
    elements
        ``ELEMENTS`` of all sections.
    features_key, tissue_key, key_added, strict
        As in :func:`sphistex.tl.super_resolve`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If there is no section, one twice, one that cannot be used, or if their spots do not go together.
    """
    names = {"features_key": features_key, "tissue_key": tissue_key, "key_added": key_added}
    wanted: list[tuple[SpatialData, Mapping[str, Any], dict[str, str], str]]
    if sections is None:
        objects = _objects(data)
        n = len(objects)
        wanted = [(one, {}, names, f"section {i} of {n}" if n > 1 else "") for i, one in enumerate(objects, start=1)]
    else:
        if not isinstance(data, SpatialData):
            raise TypeError(f"sections={sections!r} names sections of one SpatialData, but {len(data)} were given")
        named = _of_column(data, sections, elements) if isinstance(sections, str) else _checked(sections)
        wanted = [
            (data, own, {key: f"{value}_{name}" for key, value in names.items()}, f"section {name!r}")
            for name, own in named.items()
        ]
    placed = []
    for sdata, own, made, called in wanted:
        with about(called):
            placed.append(
                Placed(sdata, resolve_section(sdata, **{**elements, **own}, strict=strict), **made, called=called)
            )
    _check_together(placed)
    return placed


def common_genes(placed: Sequence[Placed], genes: int | Sequence[str] | str | None) -> list[str]:
    """Names of the genes to predict, which the tables of all sections have.

    The most variable ones are chosen on the spots of all sections together.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a named gene is not in every table, the sections have no gene in common, or the argument makes no sense.

    Warns
    -----
    UserWarning
        If genes are left out because a section lacks them.
    """
    tables = [one.section.table for one in placed]
    if len(tables) == 1:
        return choose_genes(tables[0], genes)
    if isinstance(genes, Iterable) and not isinstance(genes, str):
        for one in placed:
            with about(one.called):
                shared = check_genes(one.section.table, genes, one.section.table_key)  # type: ignore[arg-type]
    else:
        shared = _in_all(placed)
    counts = sparse.vstack([sparse.csr_matrix(table[:, shared].X) for table in tables], format="csr")
    return choose_genes(AnnData(counts, var=pd.DataFrame(index=shared)), genes)


def _in_all(placed: Sequence[Placed]) -> list[str]:
    """Genes that the tables of all sections have; says which some of them lack."""
    names = [one.section.table.var_names for one in placed]
    shared = [name for name in names[0] if all(name in others for others in names[1:])]
    if not shared:
        heads = "; ".join(f"{one.called}: {_some(list(some), 3)}" for one, some in zip(placed, names, strict=True))
        raise ValueError(f"the sections have no gene in common ({heads}): are some names symbols and others ids?")
    if lacking := sorted(set().union(*names).difference(shared)):
        warnings.warn(
            f"{len(lacking)} genes that not all sections have are left out: {_some(lacking, _NAMED)}",
            UserWarning,
            stacklevel=4,
        )
    return shared


def _objects(data: SpatialData | Sequence[SpatialData]) -> list[SpatialData]:
    """All objects, each once."""
    if data is None or isinstance(data, str | Path | Mapping):
        kind = type(data).__name__
        raise TypeError(f"sdata must be a SpatialData, such as of spatialdata.read_zarr, or a list of them, not {kind}")
    objects = [data] if isinstance(data, SpatialData) else list(data)
    if not objects:
        raise ValueError("sdata=[] holds no section: pass at least one SpatialData")
    if wrong := [type(one).__name__ for one in objects if not isinstance(one, SpatialData)]:
        raise TypeError(f"sdata must be a SpatialData or a list of them, but holds {wrong}")
    stores = [Path(one.path).resolve() for one in objects if one.is_backed()]
    if len({id(one) for one in objects}) < len(objects) or len(set(stores)) < len(stores):
        raise ValueError(
            "sdata holds the same object or store twice: pass each section once, or name several of one with sections="
        )
    return objects


def _checked(sections: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Sections by name, with elements that exist as arguments."""
    example = 'sections={"A": {"image_key": "image_A", "shapes_key": "spots_A"}}'
    if not isinstance(sections, Mapping) or not sections:
        raise TypeError(f"sections={sections!r} must name the elements of at least one section, such as {example}")
    for name, own in sections.items():
        if not isinstance(own, Mapping) or not set(own) <= set(ELEMENTS):
            raise TypeError(f"sections[{name!r}]={own!r} must be a dict of some of {list(ELEMENTS)}, such as {example}")
    return sections


def _of_column(sdata: SpatialData, column: str, elements: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Table, shapes and image of every section that a column of the tables names."""
    named = elements.get("table_key")
    tables = [named] if named is not None else candidates(sdata, "tables")
    tables = [key for key in tables if key in sdata.tables and column in sdata.tables[key].obs]
    if not tables:
        held = {key: list(table.obs.columns) for key, table in sdata.tables.items()}
        raise KeyError(f"sections={column!r} is a column of no table's obs: {held}; name the elements of each section")
    found: dict[str, dict[str, Any]] = {}
    for table_key in tables:
        table = sdata.tables[table_key]
        regions = table.obs[table.uns["spatialdata_attrs"]["region_key"]]
        for value, rows in regions.groupby(table.obs[column], observed=True):
            shapes = [str(region) for region in rows.unique()]
            name = str(value)
            if len(shapes) != 1 or name in found or any(shapes == [own["shapes_key"]] for own in found.values()):
                raise ValueError(
                    f"sections={column!r}: {name!r} has its spots in the shapes {shapes} of table {table_key!r}, which "
                    "must be one element, of one section; name the elements of each section instead"
                )
            image_key = _image_of(sdata, name, shapes[0])
            found[name] = {"table_key": table_key, "shapes_key": shapes[0], "image_key": image_key}
    return found


def _image_of(sdata: SpatialData, name: str, shapes_key: str) -> str | None:
    """Of several images beside the spots, the one that is called as the section is; None leaves the choice."""
    if shapes_key not in sdata.shapes:
        return None
    systems = transforms_of(sdata.shapes[shapes_key]).keys()
    beside = [key for key in candidates(sdata, "images") if systems & transforms_of(sdata.images[key]).keys()]
    own = [key for key in beside if key.startswith(name) or key.endswith(name)]
    if len(beside) == 1 or not own:
        return None
    return choose_image(SpatialData(images={key: sdata.images[key] for key in own}), None, among=None)


def _check_together(placed: Sequence[Placed]) -> None:
    """Refuse sections that share their spots, or whose spots are not of one kind."""
    places = [(id(one.sdata), one.section.shapes_key) for one in placed]
    for number, place in enumerate(places):
        if place in places[:number]:
            first, second = placed[places.index(place)], placed[number]
            raise ValueError(
                f"{first.called} and {second.called} have the same spots {place[1]!r}: name different shapes_key"
            )
    pitches = [one.section.pitch_um for one in placed]
    if max(pitches) > _SAME_PITCH * min(pitches):
        found = ", ".join(f"{one.called}: {one.section.pitch_um:.4g} µm" for one in placed)
        raise ValueError(
            f"the spots of the sections lie differently far apart ({found}); one model is fitted to spots of one kind: "
            "fit a model for each kind"
        )


@contextmanager
def about(called: str) -> Iterator[None]:
    """Say of an error which section it is about."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        if not called:
            raise
        raise type(error)(f"{called}: {error.args[0] if error.args else error}") from error


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
