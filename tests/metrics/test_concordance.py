"""Concordance index against its definition, and against scikit-survival."""

from __future__ import annotations

import numpy as np
import pytest

from sphistex.metrics import concordance


def _patients(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, 30).astype(float), rng.integers(1, 9, 30).astype(float), rng.random(30) < 0.6


def test_it_counts_pairs():
    risk, time, event = _patients(0)
    right = pairs = 0.0
    for i in range(30):
        for j in range(30):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j])
    assert concordance(risk, time, event) == pytest.approx(right / pairs)


def test_it_is_that_of_scikit_survival():
    reference = pytest.importorskip("sksurv.metrics").concordance_index_censored
    for seed in range(3):
        risk, time, event = _patients(seed)
        assert concordance(risk, time, event) == pytest.approx(reference(event, time, risk)[0])


def test_without_an_event_nothing_can_be_said():
    assert np.isnan(concordance([1, 2], [1, 2], [0, 0]))
