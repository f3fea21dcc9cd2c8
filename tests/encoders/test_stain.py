"""Other stains of the same tissue."""

from __future__ import annotations

import numpy as np

import sphistex as sx
from sphistex.encoders.stain import STRENGTH, Restained, restained


def test_the_amount_of_a_stain_is_what_is_changed() -> None:
    from skimage.color import rgb2hed

    image = np.asarray(sx.datasets.simulate(size_um=300, n_genes=2).images["image"]).transpose(1, 2, 0)
    before, after = rgb2hed(image), rgb2hed(restained(image, np.array([0.8, 1.2, 1.0])))
    stained = (before[..., :2] > 0.02).all(-1)  # of less, what it is changed by is no whole step of the colours
    ratio = np.median(after[stained] / np.maximum(before[stained], 1e-9), axis=0)
    np.testing.assert_allclose(ratio[:2], [0.8, 1.2], atol=0.05)
    assert (restained(np.full((2, 2, 3), 255, np.uint8), np.array([0.8, 1.2, 1.0])) == 255).all(), "glass stays glass"


def test_a_seed_stands_for_a_stain() -> None:
    encoder = sx.encoders.get("efficientnet_lite0", device="cpu")
    one, other, again = Restained(encoder, 1), Restained(encoder, 2), Restained(encoder, 1)
    assert (one.factors == again.factors).all() and one.name == again.name
    assert (one.factors != other.factors)[:2].all() and one.name != other.name
    assert (np.abs(one.factors - 1) <= STRENGTH).all()
    assert isinstance(one, sx.encoders.Encoder)
