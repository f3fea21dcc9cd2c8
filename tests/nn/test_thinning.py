"""Each molecule falls into one half or the other by the toss of a coin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sphistex.nn.thinning import drawn_half


@pytest.mark.parametrize("count", [0, 1, 2, 17, 63, 64, 65, 500])
def test_halves_are_binomial(count: int) -> None:
    half = drawn_half(np.full((200, 500), count, dtype=np.float32), torch.Generator().manual_seed(count))
    assert half.min() >= 0
    assert half.max() <= count
    assert half.mean() == pytest.approx(count / 2, abs=5 * (count / 4 / half.size) ** 0.5)
    assert half.var() == pytest.approx(count / 4, rel=0.03)


def test_many_and_few_are_drawn_side_by_side() -> None:
    counts = np.tile(np.array([3.0, 200.0], dtype=np.float32), (5000, 1))
    half = drawn_half(counts, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(half.mean(0), [1.5, 100], rtol=0.03)
    np.testing.assert_array_equal(half, drawn_half(counts, torch.Generator().manual_seed(0)))
    assert abs(np.corrcoef(half[:, 0], half[:, 1])[0, 1]) < 0.05
