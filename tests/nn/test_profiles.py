"""Principal components of the spots' counts: of many genes as of few."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sphistex.nn import profiles


def test_components_of_many_genes_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rates = np.exp(rng.normal(size=(60, 5)) @ rng.normal(size=(5, 150)) * 0.5 + 1)
    counts = torch.from_numpy(rng.poisson(rates).astype(np.float32))
    exact = profiles.LogProfiles(counts, 5)(counts)
    monkeypatch.setattr(profiles, "_MANY_GENES", 40)
    found = profiles.LogProfiles(counts, 5)(counts)
    assert found.shape == exact.shape == (60, 6)
    same = torch.nn.functional.cosine_similarity(found, exact, dim=0).abs()  # signs are free
    torch.testing.assert_close(same, torch.ones(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.norm(dim=0), exact.norm(dim=0), rtol=1e-3, atol=0)


def test_spots_without_any_difference_have_finite_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "_MANY_GENES", 5)
    assert profiles.LogProfiles(torch.ones(8, 30))(torch.ones(8, 30)).isfinite().all()
