"""Sections and the clinical table beside them, checked and as plain arrays."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from sphistex._checks import check_open
from sphistex.nn.outcome import Outcome
from sphistex.nn.picture import Layout

# Log-normalised expression of single spots stays far below this.
_LOG_LIMIT = 20.0


@dataclass(frozen=True)
class Cohort:
    """Sections of patients.

    Parameters
    ----------
    tables
        Of each section, log-normalised expression.
    genes
        What all of them have.
    layouts
        Where the positions of each section are.
    pooled
        Which of them count, (n_positions,) for each section.
    patients
        Their names.
    patient
        Index of each section's patient (n_sections,).
    covariates
        (n_patients, n_covariates).
    means
        Mean expression at the positions that count (n_patients, n_genes), each section of a patient alike.
    """

    tables: list[AnnData]
    genes: pd.Index
    layouts: list[Layout]
    pooled: list[NDArray[np.bool_]]
    patients: pd.Index
    patient: NDArray[np.intp]
    covariates: NDArray[np.float64]
    means: NDArray[np.float64]

    @property
    def hexagonal(self) -> bool:
        """Whether the lattice of all sections is."""
        return self.layouts[0].hexagonal

    def sections_of(self, patients: NDArray[np.intp]) -> NDArray[np.intp]:
        """Indices of their sections."""
        return np.flatnonzero(np.isin(self.patient, patients))

    def values(self, section: int, genes: Sequence[str]) -> NDArray[np.float32]:
        """Expression (n_positions, n_genes) of a section."""
        return _dense(self.tables[section], genes)


Section: TypeAlias = SpatialData | AnnData


@dataclass(frozen=True)
class Sections:
    """Sections one by one.

    Parameters
    ----------
    of
        The sections by name.
    rows
        Name of each one's row in the clinical table.
    """

    of: dict[Any, Section]
    rows: list[Any]

    @classmethod
    def listed(cls, sections: Mapping[Any, Section | Sequence[Section]]) -> Sections:
        """Several sections of a row, given as a list, get numbers behind its name."""
        if not isinstance(sections, Mapping) or not sections:
            raise TypeError(
                f"sections is {type(sections).__name__}: give a dictionary of at least one section, "
                "whose keys are the index of the clinical table"
            )
        found = []
        for name, given in sections.items():
            several = isinstance(given, list | tuple)
            if several and not given:
                raise ValueError(f"sections[{name!r}] is an empty list: give its sections, or leave it out")
            each = [(f"{name}[{number}]", one) for number, one in enumerate(given)] if several else [(name, given)]
            for called, one in each:
                if not isinstance(one, SpatialData | AnnData):
                    raise TypeError(
                        f"sections[{name!r}] holds {type(one).__name__}: give SpatialData, AnnData, or a list of them"
                    )
                found.append((called, one, name))
        names, each_section, rows = (list(column) for column in zip(*found, strict=True))
        if len(set(names)) < len(names):
            raise ValueError(f"sections have the names {names}, some of them twice: rename them")
        return cls(dict(zip(names, each_section, strict=True)), rows)


def gather_cohort(
    given: Mapping[Any, Section | Sequence[Section]],
    clinical: pd.DataFrame | None,
    *,
    table_key: str,
    genes: Sequence[str] | None,
    region: str | Sequence[str] | None,
    region_key: str,
    patient: str | None,
    covariates: Sequence[str],
) -> Cohort:
    """Check everything that does not concern the outcome, and bring it together.

    Patients come in the order of their first sections. Without a clinical table every section is one.
    """
    listed = Sections.listed(given)
    sections = listed.of
    rows = patient_rows(listed, clinical, patient, covariates)
    number = pd.Index(rows["patient"].unique())
    _check_apart(sections, rows["patient"])
    tables = {name: _table_of(name, section, table_key) for name, section in sections.items()}
    shared = _shared_genes(tables, genes)
    layouts = _layouts(tables, table_key)
    pooled = {name: _pooled(table, region, region_key) for name, table in tables.items()}
    if empty := [name for name, counts in pooled.items() if not counts.any()]:
        raise ValueError(f"region={region!r}: no position of {empty} is in it, going by obs[{region_key!r}]")
    of_section = number.get_indexer(rows["patient"])
    means = np.zeros((len(number), len(shared)))
    for index, name in zip(of_section, tables, strict=True):
        values = _dense(tables[name], shared)
        _check_values(name, values)
        means[index] += values[pooled[name]].mean(axis=0, dtype=np.float64) / np.sum(of_section == index)
    first = rows.groupby("patient", sort=False).first()
    return Cohort(
        list(tables.values()),
        shared,
        layouts,
        list(pooled.values()),
        number,
        of_section,
        first[list(covariates)].to_numpy(dtype=np.float64),
        means,
    )


def patient_rows(
    sections: Sections, clinical: pd.DataFrame | None, patient: str | None, columns: Sequence[str]
) -> pd.DataFrame:
    """The clinical table in the order of the sections, with a column ``patient`` and the numeric ``columns``."""
    names = list(sections.of)
    if clinical is None:
        if columns:
            raise ValueError(f"clinical=None: the columns {list(columns)} are needed")
        return pd.DataFrame({"patient": sections.rows}, index=names)
    if clinical.index.has_duplicates:
        raise ValueError(f"clinical has several rows for {clinical.index[clinical.index.duplicated()].tolist()}")
    wanted = [*columns, *([patient] if patient else [])]
    if missing := [column for column in wanted if column not in clinical]:
        raise KeyError(f"{missing} are no columns of clinical: {list(clinical.columns)}")
    if repeated := [column for column in wanted if (clinical.columns == column).sum() > 1 or wanted.count(column) > 1]:
        raise ValueError(
            f"each column has one meaning, and one place in clinical: {sorted(set(repeated))} have several"
        )
    rowless = [name for name in dict.fromkeys(sections.rows) if name not in clinical.index]
    sectionless = [name for name in clinical.index if name not in sections.rows]
    if rowless or sectionless:
        raise ValueError(
            f"sections without a row in clinical: {rowless}; rows without a section: {sectionless}. The index of "
            "clinical must be the keys of sections; leave out the others with clinical.loc[list(sections)], and where "
            "a patient with one row has several sections give a list of them"
        )
    found = clinical.loc[sections.rows]
    rows = pd.DataFrame({"patient": sections.rows if patient is None else found[patient].to_numpy()}, index=names)
    if without := rows.index[rows["patient"].isna()].tolist():
        raise ValueError(f"patient={patient!r} is missing for {without}")
    if "patient" in columns:
        raise ValueError("the column 'patient' names patients here, and is nothing to learn from: rename it if it is")
    for column in columns:
        rows[column] = _numbers(found[column], column)
        differing = rows.groupby("patient")[column].nunique() > 1
        if differing.any():
            raise ValueError(
                f"{column!r} differs between the sections of patients {differing.index[differing].tolist()}"
            )
    return rows


def gather_outcome(rows: pd.DataFrame, *, time: str | None, event: str | None, response: str | None) -> Outcome:
    """Outcome of each patient, in the order of their first rows."""
    first = rows.groupby("patient", sort=False).first()
    for column in filter(None, (event, response)):
        if wrong := sorted(set(first[column]) - {0, 1}):
            raise ValueError(f"{column!r} has the values {wrong}: it must be 0 or 1 for every patient")
    if response is not None:
        return Outcome(response=first[response].to_numpy() == 1)
    not_positive = first.index[first[time] <= 0].tolist()
    if not_positive:
        raise ValueError(f"time={time!r} is not above 0 for {not_positive}: leave these patients out, or correct them")
    return Outcome(time=first[time].to_numpy(dtype=np.float64), event=first[event].to_numpy() == 1)


def _numbers(values: pd.Series, column: str) -> NDArray[np.float64]:
    if isinstance(values.dtype, pd.CategoricalDtype) or values.dtype == object:
        values = values.astype(object).infer_objects()  # numbers as merged tables and categories hold them
    if not pd.api.types.is_numeric_dtype(values):
        some = next((value for value in values if isinstance(value, str)), values.iloc[0])
        raise ValueError(
            f"{column!r} holds {values.dtype}, such as {some!r}, not numbers: make outcomes 0 or 1, times "
            "numbers of days or months, and categories among covariates numbers with "
            f"pandas.get_dummies(clinical, columns=[{column!r}], drop_first=True, dtype=float)"
        )
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{column!r} is missing or infinite for {values.index[~np.isfinite(numbers)].tolist()}")
    return numbers


def _check_apart(sections: Mapping[Any, Section], patients: pd.Series) -> None:
    """Refuse a section of several patients: a model would be judged by what it was fitted to."""
    names_of: dict[int, list[Any]] = {}
    for name, section in sections.items():
        names_of.setdefault(id(section), []).append(name)
    for names in names_of.values():
        if patients[[name in names for name in sections]].nunique() > 1:
            raise ValueError(f"sections {names} are one and the same object, and of several patients in clinical")


def _table_of(name: Hashable, section: Section, table_key: str) -> AnnData:
    if isinstance(section, SpatialData):
        if table_key not in section.tables:
            raise KeyError(f"section {name!r} has no table {table_key!r}, only {list(section.tables)}")
        section = section.tables[table_key]
    check_open(section, table_key)
    if not section.var_names.is_unique:
        some = section.var_names[section.var_names.duplicated()].unique()[:5].tolist()
        raise ValueError(f"section {name!r} has duplicated gene names, such as {some}: make them unique")
    if missing := [column for column in ("array_row", "array_col") if column not in section.obs]:
        raise KeyError(f"section {name!r}: table {table_key!r} has no column {missing} in obs")
    if not section.n_obs:
        raise ValueError(f"section {name!r}: table {table_key!r} is empty")
    for column in ("array_row", "array_col"):
        if not pd.api.types.is_numeric_dtype(section.obs[column]) or section.obs[column].isna().any():
            raise ValueError(
                f"section {name!r}: obs[{column!r}] of table {table_key!r} must be a whole number everywhere"
            )
    return section


def _shared_genes(tables: Mapping[Any, AnnData], genes: Sequence[str] | None) -> pd.Index:
    """The wanted genes, or all that every table has, in the order of the first table."""
    if genes is not None:
        for name, table in tables.items():
            if missing := [gene for gene in genes if gene not in table.var_names]:
                raise KeyError(f"section {name!r} lacks {len(missing)} of {len(genes)} genes, such as {missing[:5]}")
        return pd.Index(genes)
    shared = next(iter(tables.values())).var_names
    for name, table in tables.items():
        shared = shared[shared.isin(table.var_names)]
        if shared.empty:
            raise ValueError(f"section {name!r} shares no gene with the sections before it")
    return shared


def _layouts(tables: Mapping[Any, AnnData], table_key: str) -> list[Layout]:
    """Where positions are; all sections have the same kind of lattice."""
    layouts, kinds = [], {}
    for name, table in tables.items():
        row, column = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
        recorded = table.uns.get(table_key, {}).get("lattice", {}).get("kind")
        kinds[name] = recorded or ("square" if ((row + column) % 2).any() else "hexagonal")
        try:
            layouts.append(Layout.of(row, column, hexagonal=kinds[name] == "hexagonal"))
        except ValueError as error:
            raise ValueError(f"section {name!r}: {error}") from error
    if len(set(kinds.values())) > 1:
        square = [name for name, kind in kinds.items() if kind != "hexagonal"]
        raise ValueError(f"the lattices of {square} are square, those of the other sections hexagonal: fit them apart")
    return layouts


def _pooled(table: AnnData, region: str | Sequence[str] | None, region_key: str) -> NDArray[np.bool_]:
    if region is None:
        return np.ones(table.n_obs, dtype=bool)
    if region_key not in table.obs:
        raise KeyError(f"region_key={region_key!r} is no column of obs: {list(table.obs.columns)}")
    return table.obs[region_key].isin([region] if isinstance(region, str) else list(region)).to_numpy()


def _check_values(name: Hashable, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"section {name!r} has expression that is NaN or infinite")
    if values.max(initial=0) > _LOG_LIMIT:
        raise ValueError(
            f"section {name!r} has values up to {values.max():g}: log-normalised expression is expected, as "
            "scanpy.pp.normalize_total and scanpy.pp.log1p make it of counts"
        )


def _dense(table: AnnData, genes: Sequence[str] | pd.Index) -> NDArray[np.float32]:
    values = table.X[:, table.var_names.get_indexer(genes)]
    values = values.compute() if hasattr(values, "compute") else values
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)
