"""Agreement does not depend on what regions are called, and says for each class how it was found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from sphistex.metrics import agreement

TRUE = np.array(["a"] * 6 + ["b"] * 3 + ["c"])
FOUND = np.array(["x"] * 4 + ["y"] * 2 + ["y"] * 3 + ["x"])


def test_classes_are_matched_with_the_label_that_shares_most_of_them():
    score, classes = agreement(FOUND, TRUE)
    assert score == pytest.approx(adjusted_rand_score(TRUE, FOUND))
    rows = classes.set_index("class")
    assert rows.loc["a", ["label", "n_both"]].tolist() == ["x", 4]
    assert rows.loc["a", ["recall", "precision", "jaccard"]].tolist() == pytest.approx([4 / 6, 4 / 5, 4 / 7])
    assert rows.loc["b", ["recall", "precision", "jaccard"]].tolist() == pytest.approx([1, 3 / 5, 3 / 5])
    assert rows["n"].sum() == len(TRUE)


def test_names_do_not_matter_and_places_without_one_are_left_out():
    renamed = pd.Categorical(np.where(FOUND == "x", 7, 3))
    shuffled = np.random.default_rng(0).permutation(len(TRUE))
    padded = [*renamed[shuffled], None, 7], [*TRUE[shuffled], "a", np.nan]
    score, classes = agreement(*padded)
    expected = agreement(FOUND, TRUE)
    assert score == pytest.approx(expected.adjusted_rand_index)
    columns = ["class", "n", "recall", "precision"]
    pd.testing.assert_frame_equal(classes[columns], expected.by_class[columns])


def test_series_of_the_same_places_are_matched_by_their_names():
    names = pd.Index([f"place{i}" for i in range(len(TRUE))])
    found, reference = pd.Series(FOUND, index=names), pd.Series(TRUE, index=names)
    score, classes = agreement(found, reference[::-1])
    expected = agreement(FOUND, TRUE)
    assert score == expected.adjusted_rand_index
    pd.testing.assert_frame_equal(classes, expected.by_class)


@pytest.mark.parametrize(
    ("found", "reference", "message"),
    [
        (FOUND, ["a"] * 10, "a single class, 'a'"),
        (FOUND, [None] * 10, "of 10 places none has both"),
        (FOUND, TRUE[:4], "found has 10 places, reference 4"),
    ],
)
def test_what_cannot_be_compared_is_named(found, reference, message):
    with pytest.raises(ValueError, match=message):
        agreement(found, reference)
