"""Survival or response to treatment of patients, from maps of expression."""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import expit
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex.encoders.base import resolve_device
from sphistex.nn.outcome import Ensemble, Outcome
from sphistex.settings import settings
from sphistex.tl._cohort import Cohort, Sections, gather_cohort, gather_outcome, patient_rows
from sphistex.tl._outcome_parts import Penalised, Scaling, learnable, stratified
from sphistex.tl._outcome_scores import above_median, score, scores_of
from sphistex.tl.fit import check_seed
from sphistex.tl.outcome_model import OutcomeModel

_MODELS = ("network", "pooled")


def fit_outcome(
    sections: Mapping[Any, SpatialData | AnnData | Sequence[SpatialData | AnnData]],
    clinical: pd.DataFrame,
    *,
    time: str | None = None,
    event: str | None = None,
    response: str | None = None,
    covariates: Sequence[str] = (),
    patient: str | None = None,
    table_key: str = "histology",
    genes: int | Sequence[str] = 200,
    region: str | Sequence[str] | None = None,
    region_key: str = "predicted_region",
    n_channels: int = 16,
    folds: int = 5,
    n_models: int = 3,
    n_permutations: int = 20,
    seed: int | None = None,
    device: str | None = None,
) -> OutcomeModel:
    """Learn survival, or response to treatment, from the sections of a cohort.

    Two models stand beside each other: a small convolutional network on the maps, and penalised regression on each
    patient's mean expression (Cox's model, or logistic regression); covariates enter both. Every patient is predicted
    by models fitted without him or her: genes, scales, principal components and the penalty are learnt from the other
    folds alone, the penalty by cross-validation among them. The same is done with outcomes shuffled among the patients,
    which shows what chance gives. The models that are returned are fitted to all patients.

    Parameters
    ----------
    sections
        Sections by name: SpatialData, or tables, with log-normalised expression and ``obs["array_row"]`` and
        ``obs["array_col"]`` as Visium has them. Or by patient, where one with several sections has a list of them.
    clinical
        One row for each section, or each patient, with the keys of ``sections`` as index. Rows of one patient agree.
    time, event
        Columns for survival: the time until the event or until last seen, and whether there was one (1 or 0).
    response
        Column for a response to treatment (1 or 0) instead.
    covariates
        Further columns of numbers to learn from, such as age.
    patient
        Column with the patients, where they have several rows; by default each row is a patient's.
    table_key
        Table of each section.
    genes
        Names; or how many of those whose mean varies most between the patients.
    region, region_key
        Average over positions of these regions only, by this column of ``obs``; the others are still seen by the
        network as their surroundings.
    n_channels
        Principal components of the genes that the network sees, at most.
    folds
        Of the cross-validation, over patients, with the events evenly spread.
    n_models
        Networks that are averaged.
    n_permutations
        How many times outcomes are shuffled. Each takes as long as the cross-validation itself; 0 leaves it out.
    seed
        Seed of everything random; default: that of the settings.
    device
        Torch device; default: that of the settings.

    Returns
    -------
    The fitted :class:`sphistex.tl.OutcomeModel`, with ``scores`` and out-of-fold ``predictions``.

    Raises
    ------
    KeyError, TypeError, ValueError
        If columns, sections, outcomes, genes or parameters cannot be used; before anything is fitted.
    ImportError
        If the extra ``clinical`` is missing, for survival.

    References
    ----------
    Cox, Regression models and life-tables, J. R. Stat. Soc. B 1972. Woo et al., ConvNeXt V2, CVPR 2023.

    Examples
    --------
    >>> import scanpy as sc
    >>> import sphistex as sx
    >>> sections, clinical = sx.datasets.simulate_cohort(n_patients=8, size_um=400, n_genes=20)
    >>> for section in sections.values():
    ...     counts = section.tables["counts"]
    ...     sc.pp.normalize_total(counts, target_sum=1e4)
    ...     sc.pp.log1p(counts)
    >>> clinical["response"] = [0, 1] * 4
    >>> model = sx.tl.fit_outcome(
    ...     sections, clinical, response="response", table_key="counts", folds=2, n_models=1, n_permutations=1
    ... )
    >>> model.scores.index.tolist()
    ['network', 'pooled']
    """
    seed = check_seed(seed)
    where = resolve_device(device or settings.device)
    outcome = _outcome(sections, clinical, time, event, response, patient, covariates)
    _check_numbers(outcome, n_channels=n_channels, folds=folds, n_models=n_models, n_permutations=n_permutations)
    folds = int(folds)  # kept in the model's file, which knows no numbers of numpy
    columns: dict[str, Any] = {
        "table_key": table_key,
        "region": region if region is None or isinstance(region, str) else list(region),
        "region_key": region_key,
        "patient": patient,
        "covariates": list(covariates),
    }
    names, n_genes = _wanted(genes)
    cohort = gather_cohort(sections, clinical, genes=names, **columns)

    started = clock.perf_counter()
    learner = _Learner(cohort, n_genes or len(cohort.genes), n_channels, n_models, seed, where)
    fold = stratified(outcome, folds, seed)
    orders = [np.arange(len(outcome)), *_shuffles(outcome, fold, n_permutations, seed)]
    said = _left_out(learner, outcome, fold, orders)
    everyone = np.arange(len(outcome))
    scaling, prepared = learner.prepared(everyone)
    network, pooled = prepared.fit(everyone, outcome)
    risks = {model: said[model][0] for model in _MODELS}
    shuffled = {
        model: np.array(
            [score(outcome.take(order), row) for order, row in zip(orders[1:], said[model][1:], strict=True)]
        )
        for model in _MODELS
    }
    return OutcomeModel(
        outcome.kind,
        scaling,
        network,
        pooled,
        cohort.hexagonal,
        columns,
        scores_of(outcome, risks, shuffled, seed),
        _predictions(cohort.patients, outcome, risks, fold),
        {
            "seed": seed,
            "folds": folds,
            "n_sections": len(cohort.tables),
            "n_permutations": int(n_permutations),
            "seconds": round(clock.perf_counter() - started, 2),
            "versions": {name: version(name) for name in ("sphistex", "torch", "numpy", "scikit-learn")},
        },
    )


def _outcome(
    sections: Mapping[Any, Any],
    clinical: pd.DataFrame,
    time: str | None,
    event: str | None,
    response: str | None,
    patient: str | None,
    covariates: Sequence[str],
) -> Outcome:
    """The outcome that was asked for, checked."""
    survival = time is not None and event is not None
    if survival == (response is not None) or (time is None) != (event is None):
        raise ValueError(
            f"time={time!r}, event={event!r}, response={response!r}: give either time and event, or response"
        )
    if isinstance(covariates, str):
        raise TypeError(f"covariates={covariates!r} is a string; pass a list such as [{covariates!r}]")
    if survival and find_spec("sksurv") is None:
        raise ImportError('survival needs scikit-survival: pip install "sphistex[clinical]"')
    if not isinstance(sections, Mapping) or not isinstance(clinical, pd.DataFrame):
        raise TypeError(
            f"sections is {type(sections).__name__} and clinical is {type(clinical).__name__}: give a dictionary of "
            "sections, and a pandas DataFrame with their names as its index"
        )
    asked = [column for column in (time, event, response) if column is not None]
    if leaking := [column for column in covariates if column in asked]:
        raise ValueError(f"covariates={list(covariates)} hold the outcome itself: {leaking}")
    rows = patient_rows(Sections.listed(sections), clinical, patient, [*covariates, *asked])
    return gather_outcome(rows, time=time, event=event, response=response)


def _check_numbers(outcome: Outcome, **numbers: int) -> None:
    least = {"n_channels": 1, "folds": 2, "n_models": 1, "n_permutations": 0}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least[name]:
            raise ValueError(f"{name}={value!r}: give a whole number of at least {least[name]}")
    folds, n = numbers["folds"], len(outcome)
    if n < 3:
        raise ValueError(
            f"an outcome model compares patients, and at least two besides the one that is left out: there are {n}. "
            "A model that was fitted to others says what it expects of them with OutcomeModel.predict"
        )
    if n < folds or n - -(-n // folds) < 2:
        raise ValueError(
            f"folds={folds}: there are only {n} patients, and each fold must leave two or more to learn from"
        )
    if outcome.kind == "response" and learnable(outcome) == 0:
        raise ValueError("all patients have the same response: there is nothing to learn")
    if learnable(outcome) == 0:
        raise ValueError(f"none of the {n} patients had the event: there is nothing to learn")
    if learnable(outcome) < folds:
        rarer = "had the event" if outcome.kind == "survival" else "are of the rarer response"
        way_out = (
            f"give folds={learnable(outcome)}" if learnable(outcome) > 1 else "add patients: at least two are needed"
        )
        raise ValueError(
            f"folds={folds}: only {learnable(outcome)} of {n} patients {rarer}, too few for one in every fold; "
            f"{way_out}"
        )


def _wanted(genes: int | Sequence[str]) -> tuple[list[str] | None, int | None]:
    """Names of genes, or how many."""
    if isinstance(genes, str) or (isinstance(genes, int | np.integer) and (isinstance(genes, bool) or genes < 1)):
        raise ValueError(f"genes={genes!r}: give a list of names, or how many genes")
    if isinstance(genes, int | np.integer):
        return None, int(genes)
    if not isinstance(genes, Iterable):
        raise TypeError(f"genes={genes!r}: give a list of names, or how many genes, a whole number")
    genes = list(genes)
    if not len(genes) or len(set(genes)) < len(genes):
        raise ValueError(f"genes={genes}: name at least one gene, and none twice")
    return [str(gene) for gene in genes], None


@dataclass(frozen=True)
class _Learner:
    """How models are fitted to some patients of a cohort."""

    cohort: Cohort
    n_genes: int
    n_channels: int
    n_models: int
    seed: int
    device: torch.device

    def prepared(self, patients: NDArray[np.intp]) -> tuple[Scaling, _Prepared]:
        """All patients on the scales of some."""
        scaling = Scaling.fit(self.cohort, patients, self.n_genes, self.n_channels)
        return scaling, _Prepared(self, scaling)


class _Prepared:
    """A cohort on fitted scales; outcomes have not been looked at."""

    def __init__(self, learner: _Learner, scaling: Scaling) -> None:
        self.learner = learner
        self.pictures, self.features = scaling.pictures(learner.cohort), scaling.features(learner.cohort)

    def fit(self, patients: NDArray[np.intp], outcome: Outcome) -> tuple[Ensemble, Penalised]:
        """Both models, on some patients and their outcome."""
        how = self.learner
        network = Ensemble.fit(
            self.pictures.take(patients),
            outcome,
            hexagonal=how.cohort.hexagonal,
            n_models=how.n_models,
            seed=how.seed,
            device=how.device,
        )
        return network, Penalised.fit(self.features[patients], outcome, seed=how.seed)

    def predicted(
        self, network: Ensemble, pooled: Penalised, patients: NDArray[np.intp]
    ) -> dict[str, NDArray[np.float64]]:
        """What both models say of some patients."""
        said = network.predict(self.pictures.take(patients)), pooled.predict(self.features[patients])
        return dict(zip(_MODELS, said, strict=True))


def _left_out(
    learner: _Learner, outcome: Outcome, fold: NDArray[np.intp], orders: Sequence[NDArray[np.intp]]
) -> dict[str, NDArray[np.float64]]:
    """What each model says of the patients that it was not fitted to, (n_orders, n_patients).

    Each of the ``orders`` says whose outcome every patient is given.
    """
    said = {model: np.empty((len(orders), len(outcome))) for model in _MODELS}
    folds = np.unique(fold)
    bar = tqdm(total=len(folds) * len(orders), desc="cross-validation", unit="fit", disable=not settings.progress)
    with bar:
        for number in folds:
            seen, unseen = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            _, prepared = learner.prepared(seen)
            for row, order in enumerate(orders):
                fitted = prepared.fit(seen, outcome.take(order[seen]))
                for model, values in prepared.predicted(*fitted, unseen).items():
                    said[model][row, unseen] = values
                bar.update()
    return said


def _shuffles(outcome: Outcome, fold: NDArray[np.intp], n: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Orders of the patients (n_patients,) in which there is something to learn from outside of every fold."""
    rng = np.random.default_rng([seed, 2])
    while n:
        order = rng.permutation(len(outcome))
        if all(learnable(outcome.take(order[fold != number])) for number in np.unique(fold)):
            n -= 1
            yield order


def _predictions(
    patients: pd.Index, outcome: Outcome, risks: dict[str, NDArray[np.float64]], fold: NDArray[np.intp]
) -> pd.DataFrame:
    """One row for each patient: fold, outcome, what was said, and of survival the risk group."""
    table = pd.DataFrame({"fold": fold}, index=pd.Index(patients, name="patient"))
    if outcome.kind == "response":
        return table.assign(
            response=outcome.happened.astype(int), **{model: expit(risk) for model, risk in risks.items()}
        )
    groups = {f"{model}_group": np.where(above_median(risk), "high", "low") for model, risk in risks.items()}
    return table.assign(time=outcome.time, event=outcome.happened.astype(int), **risks, **groups)
