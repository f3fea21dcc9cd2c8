"""A simulated cohort: sections of many patients whose outcome depends on a known gene programme of the tumour."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtri
from spatialdata import SpatialData

from sphistex._checks import is_number
from sphistex.datasets import _cells, _expression, _stain, _tissue
from sphistex.datasets.simulate import _elements, _grow, _scale, _Section, _size
from sphistex.metrics.concordance import concordance

# Genes of the programme at most, and what one standard deviation of its level does to their rates.
_PROGRAMME_GENES, _PROGRAMME_EFFECT = 10, 0.5
# What it does to the nuclei of the tumour.
_NUCLEI_EFFECT = 0.12
_MEDIAN_MONTHS = 24.0
_CENSORED = 0.3


def simulate_cohort(
    *,
    n_patients: int = 60,
    size_um: float | tuple[float, float] = 800.0,
    n_genes: int = 60,
    depth: float = 1000.0,
    true_concordance: float = 0.8,
    visible: bool = True,
    seed: int = 0,
) -> tuple[dict[str, SpatialData], pd.DataFrame]:
    """Simulate one section for each of many patients, with survival and response to treatment.

    Every patient has a hidden level z, standard normal over the cohort, of a programme of up to ten genes that all
    cells express: it multiplies their rates by exp(0.5 z) in the tumour, and nowhere else. The hazard of death is
    proportional to exp(βz), censoring is independent of it and takes about 30 % of the patients, and the chance to
    respond is 1 / (1 + exp(-z)). Age and stage have nothing to do with any of it.

    Parameters
    ----------
    n_patients
        Number of patients.
    size_um, n_genes, depth, seed
        Of the sections, as in :func:`simulate`.
    true_concordance
        Concordance index that z itself is expected to have; it decides β.
    visible
        Whether the level is also seen in the image: the nuclei of tumour cells are exp(0.12 z) times as long and wide.

    Returns
    -------
    The sections by name, each as :func:`simulate` makes one, with the compartment that covers most of each spot in
    ``tables["counts"].obs["compartment"]`` and the genes of the programme in ``var["programme"]``; and a clinical
    table with one row for each section: ``patient``, ``time`` (months), ``event`` (1: died, 0: censored), ``response``
    (1: yes), ``age``, ``stage``, and the hidden ``z``. Its ``attrs`` hold ``beta``, and as ``true_concordance`` the
    concordance index that z has in this very cohort.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> sections, clinical = simulate_cohort(n_patients=3, size_um=300, n_genes=20)
    >>> list(sections), clinical.columns.tolist()
    (['S001', 'S002', 'S003'], ['patient', 'time', 'event', 'response', 'age', 'stage', 'z'])
    """
    height_um, width_um = _size(size_um)
    for name, value, least in (("n_patients", n_patients, 2), ("n_genes", n_genes, 10), ("seed", seed, 0)):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")
    if not (is_number(depth) and depth > 0):
        raise ValueError(f"depth={depth!r}: give the mean counts of a spot, a positive number")
    if not (is_number(true_concordance) and 0.5 <= true_concordance <= 0.95):
        raise ValueError(f"true_concordance={true_concordance!r}: give a number from 0.5 (chance) to 0.95")

    names = [f"S{number:03d}" for number in range(1, n_patients + 1)]
    clinical = _clinical(names, true_concordance, np.random.default_rng([seed, 1]))
    genes = _expression.draw_genes(n_genes, np.random.default_rng([seed, 0]))
    genes.var["programme"] = _programme(genes)
    shape_px = (round(height_um / _stain.MPP), round(width_um / _stain.MPP))
    generators = [np.random.default_rng([seed, 2, number]) for number in range(n_patients)]
    grown = [_grow(shape_px, genes, rng) for rng in generators]
    for section, level in zip(grown, clinical["z"], strict=True):
        _express(section, genes, level, visible=visible)
    _scale(grown, genes, depth)

    sections = {}
    for name, section, rng in zip(names, grown, generators, strict=True):
        elements = _elements(section, genes, shape_px, "", "global", rng)
        elements["counts"].obs["compartment"] = _compartment_of_spots(section)
        sections[name] = SpatialData.init_from_elements(elements)
    return sections, clinical


def _programme(genes: _expression.Genes) -> NDArray[np.bool_]:
    """Genes that every cell expresses, so that where they are expressed says nothing of the compartment."""
    broad = (genes.var["kind"] == "broad").to_numpy()
    return broad & (broad.cumsum() <= _PROGRAMME_GENES)


def _express(section: _Section, genes: _expression.Genes, level: float, *, visible: bool) -> None:
    """Raise the programme in the tumour, and let its nuclei show it."""
    tumour = section.compartment[section.on_tissue] == _tissue.TUMOUR
    programme = genes.var["programme"].to_numpy()
    section.rate[np.ix_(tumour, programme)] *= np.exp(_PROGRAMME_EFFECT * level)
    if visible:  # after the rates were made: larger nuclei hold no more RNA
        cells = section.cells["type"] == _cells.TYPE_NAMES.index("tumour")
        section.cells.loc[cells, ["long_um", "short_um"]] *= np.exp(_NUCLEI_EFFECT * level)


def _compartment_of_spots(section: _Section) -> pd.Categorical:
    """What covers most of each spot's tissue."""
    codes = section.compartment[section.on_tissue]
    areas = section.weights @ np.eye(len(_tissue.COMPARTMENTS))[codes]
    names = pd.Categorical.from_codes(areas.argmax(axis=1), categories=list(_tissue.COMPARTMENTS))
    return names.remove_unused_categories()


def _clinical(names: list[str], true_concordance: float, rng: np.random.Generator) -> pd.DataFrame:
    """Outcomes and covariates, one row a patient."""
    n = len(names)
    # Evenly spread levels: a cohort is small, and drawn ones would differ much from cohort to cohort.
    z = _normal_quantiles(n)[rng.permutation(n)]
    beta = _effect_of(true_concordance)
    hazard = np.log(2) / _MEDIAN_MONTHS * np.exp(beta * z)
    until_death, until_lost = rng.exponential(1 / hazard), rng.exponential(1 / _rate_of_loss(hazard), n)
    clinical = pd.DataFrame(
        {
            "patient": [f"P{name[1:]}" for name in names],
            "time": np.maximum(np.minimum(until_death, until_lost), 0.01),
            "event": (until_death <= until_lost).astype(int),
            "response": (rng.random(n) < expit(z)).astype(int),
            "age": rng.normal(62, 9, n).round().clip(25, 95).astype(int),
            "stage": rng.choice([1, 2, 3, 4], n, p=[0.2, 0.4, 0.3, 0.1]),
            "z": z,
        },
        index=pd.Index(names, name="section"),
    )
    found = concordance(z, clinical["time"], clinical["event"])
    clinical.attrs |= {"beta": beta, "true_concordance": found}
    return clinical


def _normal_quantiles(n: int) -> NDArray[np.float64]:
    return ndtri((np.arange(n) + 0.5) / n)


def _effect_of(true_concordance: float) -> float:
    """β at which the concordance index of z is expected to be this, with the censoring that there is."""
    return float(brentq(lambda beta: _expected_concordance(beta) - true_concordance, 0, 20))


def _expected_concordance(beta: float) -> float:
    """Of all pairs whose first event is seen, the share in which it is that of the patient with the higher hazard.

    Of several exponential times, each is the shortest with a probability proportional to its rate.
    """
    hazard = np.exp(beta * _normal_quantiles(200))
    first, second = hazard[:, None], hazard[None]
    rate = first + second + 2 * _rate_of_loss(hazard)
    return float((np.maximum(first, second) / rate).mean() / ((first + second) / rate).mean())


def _rate_of_loss(hazard: NDArray[np.float64]) -> float:
    """Rate at which patients are lost so that ``_CENSORED`` of them are lost before they die."""
    log_rate = brentq(lambda log: np.mean(1 / (1 + hazard / np.exp(log))) - _CENSORED, -50, 50)
    return float(np.exp(log_rate))
