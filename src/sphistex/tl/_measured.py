"""Measured sections as what a histology model is fitted to: features, log-normalised expression and regions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from sphistex.nn.histology import LatticeSection
from sphistex.nn.picture import Layout
from sphistex.tl._expression import PER_SPOT
from sphistex.tl._genes import choose_genes
from sphistex.tl._sections import Placed, about, common_genes
from sphistex.tl.lattice_features import VERSION

DEFAULT_N_GENES = 200
# Genes are chosen among those that are seen in so many of the spots, where there are enough of them.
_SEEN = 0.2
# Of the positions' lattices: pitches may differ by this factor.
_SAME_PITCH = 1.1
# How features are made; sections must agree in it.
_MADE = ("encoder", "revision", "dim", "scales")


@dataclass(frozen=True)
class Measured:
    """Sections ready to be fitted to.

    Parameters
    ----------
    sections
        One for each.
    genes, classes
        Of their expression and of their regions.
    features
        How all their lattice features were made.
    depth
        Median counts of a spot.
    """

    sections: list[LatticeSection]
    genes: list[str]
    classes: list[str]
    features: dict[str, Any]
    depth: float


def gather(
    placed: Sequence[Placed], features_key: str, genes: Sequence[str], regions_key: str | None, classes: Sequence[str]
) -> Measured:
    """Arrays of sections that have lattice features.

    Raises
    ------
    KeyError, ValueError
        If their features were made differently, or are not of the spots.
    """
    features = features_alike([(one.sdata, one.called) for one in placed], features_key)
    sections, depths = [], []
    for one in placed:
        with about(one.called):
            table = one.sdata.tables[features_key]
            counts = one.section.table[_rows(one, features_key)]
            totals = np.asarray(counts.X.sum(1)).ravel()
            depths.append(totals)
            expression = log_normalised(_dense(counts[:, list(genes)].X), totals)
            regions = codes_of(counts, regions_key, classes) if regions_key else None
            names = [name for name in table.layers if str(name).startswith(VERSION)]  # one may be None: X itself
            versions = tuple(_dense(table.layers[name]) for name in names)
            sections.append(
                LatticeSection(layout_of(table, features_key), _dense(table.X), expression, regions, versions)
            )
    return Measured(sections, list(genes), list(classes), features, float(np.median(np.concatenate(depths))))


def layout_of(table: AnnData, features_key: str) -> Layout:
    """The picture of a table's positions."""
    kind = table.uns[features_key]["lattice"]["kind"]
    return Layout.of(table.obs["array_row"], table.obs["array_col"], hexagonal=kind == "hexagonal")


def log_normalised(counts: NDArray[np.float32], totals: NDArray[Any]) -> NDArray[np.float32]:
    """log(1 + counts in 10,000 of the spot)."""
    return np.log1p(counts * (PER_SPOT / np.maximum(totals, 1))[:, None]).astype(np.float32)


def features_alike(sections: Sequence[tuple[SpatialData, str]], features_key: str) -> dict[str, Any]:
    """How the lattice features of all sections were made.

    Raises
    ------
    KeyError, ValueError
        If a section has none, or they were made differently.
    """
    made = []
    for sdata, called in sections:
        if features_key not in sdata.tables:
            raise KeyError(
                f"{called + ': ' if called else ''}features_key={features_key!r} is not in sdata.tables "
                f"({sorted(sdata.tables)}): make it with sphistex.tl.lattice_features(sdata)"
            )
        made.append(_plain(sdata.tables[features_key].uns[features_key]))
    for (_, called), other in zip(sections[1:], made[1:], strict=True):
        check_alike(made[0], other, sections[0][1], called)
    return made[0]


def check_alike(first: dict[str, Any], other: dict[str, Any], first_called: str, called: str) -> None:
    """Refuse features that were made in another way."""
    for name in _MADE:
        if name in first and name in other and first[name] != other[name]:
            raise ValueError(
                f"the lattice features of {called} were made with {name}={other[name]!r}, those of {first_called} with "
                f"{name}={first[name]!r}: make them in the same way, with sphistex.tl.lattice_features(overwrite=True)"
            )
    one, two = first["lattice"], other["lattice"]
    if one["kind"] != two["kind"] or max(one["pitch_um"], two["pitch_um"]) > _SAME_PITCH * min(
        one["pitch_um"], two["pitch_um"]
    ):
        raise ValueError(
            f"the positions of {called} lie on a {two['kind']} lattice of {two['pitch_um']:.4g} µm, those of "
            f"{first_called} on a {one['kind']} one of {one['pitch_um']:.4g} µm: pass lattice={one['kind']!r}, "
            f"pitch_um={one['pitch_um']:.4g} to sphistex.tl.lattice_features, or fit a model for each"
        )


def check_planned(placed: Sequence[Placed], features_key: str, planned: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Refuse sections whose lattice features, those that are there and those that are ``planned``, do not go together.

    Parameters
    ----------
    planned
        Of each section without features how it is called, and how its features will be made; but for their ``dim``,
        which some encoders only show when they are used.

    Raises
    ------
    ValueError
        If they differ, or those that are there are not of the spots.
    """
    there = [one for one in placed if features_key in one.sdata.tables]
    for one in there:
        with about(one.called):
            _rows(one, features_key)
    made = [(one.called, _plain(one.sdata.tables[features_key].uns[features_key])) for one in there] + list(planned)
    for called, other in made[1:]:
        check_alike(made[0][1], other, made[0][0], called)


def _plain(made: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, also after it was read from disk."""
    return {
        "encoder": str(made["encoder"]),
        "revision": str(made["revision"]),
        "dim": int(made["dim"]),
        "scales": [int(scale) for scale in made["scales"]],
        "lattice": {
            "kind": str(made["lattice"]["kind"]),
            "pitch_um": float(made["lattice"]["pitch_um"]),
            "diameter_um": float(made["lattice"]["diameter_um"]),
        },
    }


def chosen_genes(placed: Sequence[Placed], genes: int | Sequence[str] | None) -> list[str]:
    """Named ones, or the most variable of those that are seen in enough spots."""
    if genes is not None and not isinstance(genes, int | np.integer):
        return common_genes(placed, genes)
    shared = common_genes(placed, "all")
    counts = sparse.vstack([sparse.csr_matrix(one.section.table[:, shared].X) for one in placed], format="csr")
    seen = np.asarray((counts > 0).mean(0)).ravel()
    wanted = DEFAULT_N_GENES if genes is None else genes
    often = seen >= min(_SEEN, np.sort(seen)[-min(int(wanted), len(seen))] if wanted > 0 else 1)
    names = np.array(shared)[often].tolist()
    return choose_genes(AnnData(counts[:, often], var=pd.DataFrame(index=names)), wanted)


def classes_of(placed: Sequence[Placed], regions_key: str | None) -> list[str]:
    """Names of all regions; at least two, or none where none are to be learnt."""
    if regions_key is None:
        return []
    found: set[str] = set()
    for one in placed:
        if regions_key not in one.section.table.obs:
            raise KeyError(
                f"{one.called + ': ' if one.called else ''}regions_key={regions_key!r} is no column of obs of table "
                f"{one.section.table_key!r}: {list(one.section.table.obs.columns)}"
            )
        column = one.section.table.obs[regions_key].dropna()
        if pd.api.types.is_float_dtype(column) and (column % 1 != 0).any():
            raise ValueError(
                f"{one.called + ': ' if one.called else ''}regions_key={regions_key!r} holds measurements, such as "
                f"{column.iloc[0]:g}, and not classes: name a column of regions, or cut this one with pandas.cut"
            )
        found |= set(column.astype(str))
    if len(found) < 2:
        raise ValueError(
            f"regions_key={regions_key!r} has the one class {sorted(found)} in all sections: there is nothing to tell "
            "apart; name a column with at least two, or leave it out"
        )
    return sorted(found)


def codes_of(table: AnnData, regions_key: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Place among the classes (n_obs,), -1 where there is none."""
    values = table.obs[regions_key]
    return pd.Categorical(values.astype(str).where(values.notna()), categories=classes).codes.astype(np.int64)


def _rows(one: Placed, features_key: str) -> NDArray[np.intp]:
    """Rows of the section's counts that belong to the positions.

    Raises
    ------
    ValueError
        If the features are of other positions than the spots.
    """
    table = one.sdata.tables[features_key]
    own = one.section.table.obs_names.get_indexer(table.obs_names)
    if (own < 0).any() or set(table.obs["region"].astype(str)) != {one.section.shapes_key}:
        raise ValueError(
            f"features_key={features_key!r} is not of the spots {one.section.shapes_key!r} that were measured: make "
            "it again with sphistex.tl.lattice_features(overwrite=True)"
        )
    return own


def _dense(values: Any) -> NDArray[np.float32]:
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)


def warn_if_single(n_sections: int) -> None:
    """Say what cannot be known of a model that has seen one section."""
    if n_sections == 1:
        warnings.warn(
            "the model is fitted to one section: it can be applied to others, but nothing tells how well it does there "
            "(of two or more sections, sphistex.tl.cross_validate_histology does)",
            UserWarning,
            stacklevel=3,
        )
