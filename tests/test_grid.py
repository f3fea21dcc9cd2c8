"""The lattice covers the image from its top-left corner."""

import numpy as np

from sphistex.grid import Grid


def test_every_pixel_is_covered_once():
    grid = Grid.over_image((1605, 3199), mpp=0.5)
    assert grid.shape == (101, 200)
    assert grid.pitch_px == 16


def test_rounding_of_the_scale_adds_no_row():
    assert Grid.over_image((1536, 1536), mpp=2.0004).shape == (384, 384)


def test_centres_follow_the_affine():
    grid = Grid((10, 10), mpp=0.73)
    xy = grid.centres_px([0, 3], [0, 7])
    np.testing.assert_allclose(xy[1], (grid.to_image @ [7.5, 3.5, 1])[:2])
    np.testing.assert_allclose(xy[0] * 0.73, [4.0, 4.0])
