"""What an outcome model learns from its training patients: scales and channels, and a penalised linear model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sphistex.nn.outcome import Outcome, Pictures
from sphistex.tl._cohort import Cohort

_PENALTIES = np.logspace(3, -2, 6)
_INNER_FOLDS = 5


@dataclass(frozen=True)
class Scaling:
    """What is learnt without looking at outcomes.

    Parameters
    ----------
    genes
        Those that are used.
    mean, loadings
        Channels of a position are ``(values - mean) @ loadings``: principal components of standardised genes, each
        with variance 1; (n_genes,) and (n_genes, n_channels).
    pooled_mean, pooled_sd
        Of the patients' mean expression (n_genes,).
    covariates_mean, covariates_sd
        Of their covariates (n_covariates,).
    """

    genes: list[str]
    mean: NDArray[np.float64]
    loadings: NDArray[np.float64]
    pooled_mean: NDArray[np.float64]
    pooled_sd: NDArray[np.float64]
    covariates_mean: NDArray[np.float64]
    covariates_sd: NDArray[np.float64]

    @classmethod
    def fit(cls, cohort: Cohort, patients: NDArray[np.intp], n_genes: int, n_channels: int) -> Scaling:
        """From some patients alone: the genes whose means vary most between them, and how these vary together."""
        variance = cohort.means[patients].var(axis=0)
        chosen = np.sort(np.argsort(-variance, kind="stable")[:n_genes])
        genes = cohort.genes[chosen].tolist()
        mean, covariance = _moments(cohort, patients, genes)
        sd = _spread(np.sqrt(np.diag(covariance)))
        share, vectors = np.linalg.eigh(covariance / np.outer(sd, sd))
        kept = np.argsort(-share)[: min(n_channels, int(np.sum(share > 1e-6)))]
        loadings = vectors[:, kept] / np.sqrt(share[kept]) / sd[:, None]
        pooled, covariates = cohort.means[np.ix_(patients, chosen)], cohort.covariates[patients]
        return cls(
            genes,
            mean,
            loadings,
            pooled.mean(axis=0),
            _spread(pooled.std(axis=0)),
            covariates.mean(axis=0),
            _spread(covariates.std(axis=0)),
        )

    def covariates(self, cohort: Cohort) -> NDArray[np.float64]:
        """Scaled (n_patients, n_covariates)."""
        return (cohort.covariates - self.covariates_mean) / self.covariates_sd

    def features(self, cohort: Cohort) -> NDArray[np.float64]:
        """Scaled mean expression and covariates (n_patients, n_genes + n_covariates)."""
        pooled = cohort.means[:, cohort.genes.get_indexer(self.genes)]
        return np.hstack([(pooled - self.pooled_mean) / self.pooled_sd, self.covariates(cohort)])

    def pictures(self, cohort: Cohort) -> Pictures:
        """All sections as pictures of the channels."""
        values = [
            (cohort.values(section, self.genes) - self.mean) @ self.loadings for section in range(len(cohort.tables))
        ]
        return Pictures.of(cohort.layouts, values, cohort.pooled, cohort.patient, self.covariates(cohort))


@dataclass(frozen=True)
class Penalised:
    """Ridge regression of the outcome: Cox's model, or logistic regression.

    Parameters
    ----------
    coefficients
        (n_features,).
    intercept
        Log odds at the features' mean; 0 for survival.
    penalty
        Chosen by cross-validation among the patients it was fitted to.
    """

    coefficients: NDArray[np.float64]
    intercept: float
    penalty: float

    @classmethod
    def fit(cls, features: NDArray[np.float64], outcome: Outcome, *, seed: int = 0) -> Penalised:
        """Fit to patients (n_patients, n_features), with the penalty that predicts best those left out."""
        # as many dimensions as patients are enough, and change nothing: the penalty is the same in all directions
        left, size, axes = np.linalg.svd(features, full_matrices=False)
        scores = left * size
        penalty = _best_penalty(scores, outcome, seed)
        coefficients, intercept = _ridge(scores, outcome, penalty)
        return cls(axes.T @ coefficients, intercept, penalty)

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_patients,) log relative hazard, or log odds."""
        return features @ self.coefficients + self.intercept


def stratified(outcome: Outcome, folds: int, seed: int) -> NDArray[np.intp]:
    """Fold of each patient (n_patients,), with as many events, or responses, in each as in any other but for one."""
    order = np.random.default_rng(seed).permutation(len(outcome))
    order = order[np.argsort(outcome.happened[order], kind="stable")]
    fold = np.empty(len(outcome), dtype=np.intp)
    fold[order] = np.arange(len(outcome)) % folds
    return fold


def learnable(outcome: Outcome) -> int:
    """Of how many patients there is least: those with the event, or of responses those with the rarer."""
    happened = int(outcome.happened.sum())
    return happened if outcome.kind == "survival" else min(happened, len(outcome) - happened)


def _best_penalty(features: NDArray[np.float64], outcome: Outcome, seed: int) -> float:
    """The largest penalty that predicts patients left out no worse than the best one, but for one standard error."""
    folds = min(_INNER_FOLDS, learnable(outcome))
    if folds < 2 or len(outcome) < 4:  # nothing would be left to fit to, or a single patient
        return float(_PENALTIES[0])
    fold = stratified(outcome, folds, seed)
    losses = np.stack([_left_out_losses(features, outcome, fold, penalty) for penalty in _PENALTIES])
    worse = losses - losses[losses.mean(axis=1).argmin()]
    error = worse.std(axis=1) / np.sqrt(worse.shape[1])
    return float(_PENALTIES[np.argmax(worse.mean(axis=1) <= error)])


def _left_out_losses(
    features: NDArray[np.float64], outcome: Outcome, fold: NDArray[np.intp], penalty: float
) -> NDArray[np.float64]:
    left_out = np.empty(len(outcome))
    for number in np.unique(fold):
        coefficients, intercept = _ridge(features[fold != number], outcome.take(fold != number), penalty)
        left_out[fold == number] = features[fold == number] @ coefficients + intercept
    return outcome.losses(torch.from_numpy(left_out)).numpy()


def _ridge(features: NDArray[np.float64], outcome: Outcome, penalty: float) -> tuple[NDArray[np.float64], float]:
    """Coefficients (n_features,) and intercept."""
    if outcome.kind == "response":
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(C=1 / penalty, solver="newton-cholesky").fit(features, outcome.happened)
        return fitted.coef_[0], float(fitted.intercept_[0])
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it speaks of every step that it shortens
        fitted = CoxPHSurvivalAnalysis(alpha=penalty).fit(features, Surv.from_arrays(outcome.event, outcome.time))
    return fitted.coef_, 0.0


def _moments(
    cohort: Cohort, patients: NDArray[np.intp], genes: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance of genes over positions that count, each section with the same weight; one at a time."""
    sections = cohort.sections_of(patients)
    mean, square = np.zeros(len(genes)), np.zeros((len(genes), len(genes)))
    for section in sections:
        values = cohort.values(section, genes)[cohort.pooled[section]].astype(np.float64)
        mean += values.mean(axis=0) / len(sections)
        square += values.T @ values / len(values) / len(sections)
    return mean, square - np.outer(mean, mean)


def _spread(sd: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviations to divide by; what does not vary stays as it is."""
    return np.where(sd > 1e-8, sd, 1.0)
