"""Bags are areas: what a spot covers, whatever the lattice, the scale and the border."""

import numpy as np
import pytest
import shapely
from shapely import Point, box

from sphistex.bags import Bags
from sphistex.grid import Grid


@pytest.mark.parametrize("centre_px", [(160.0, 160.0), (163.3, 171.9), (3.0, 8.0)])
@pytest.mark.parametrize("mpp", [0.5, 0.73])
def test_weights_are_shares_of_area(centre_px, mpp):
    grid = Grid((20, 20), mpp=mpp)
    bags = Bags.from_disks(grid, [centre_px], 27.5 / mpp)
    disk = Point(centre_px).buffer(27.5 / mpp, quad_segs=256)
    for index, weight in enumerate(bags.weights.toarray()[0]):
        row, column = divmod(index, 20)
        square = box(*(np.array([column, row, column + 1, row + 1]) * grid.pitch_px))
        assert weight == pytest.approx(disk.intersection(square).area / square.area, abs=3e-3)


def test_polygons_have_the_same_weights_as_the_disks_that_they_outline():
    rng = np.random.default_rng(0)
    grid = Grid((40, 30), mpp=0.6)
    centres, radii = rng.uniform(0, 400, (12, 2)), rng.uniform(10, 60, 12)
    disks = Bags.from_disks(grid, centres, radii)
    outlines = [Point(xy).buffer(radius, quad_segs=256) for xy, radius in zip(centres, radii, strict=True)]
    polygons = Bags.from_polygons(grid, outlines)
    np.testing.assert_allclose(polygons.weights.toarray(), disks.weights.toarray(), atol=3e-3)


def test_overlaps_of_polygons_are_those_that_geos_cuts_out(monkeypatch):
    monkeypatch.setattr("sphistex._coverage._CORNERS", 100)  # a few at once
    rng = np.random.default_rng(1)
    polygons = []
    for number in range(40):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 40)))
        radii = rng.uniform(0.2, 9) * rng.uniform(0.4, 1, len(angles))
        centre = rng.uniform(-3, 33, 2)
        star = centre + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
        polygon = shapely.make_valid(shapely.Polygon(star if number % 2 else star[::-1]))
        if number % 3 == 0:  # a hole
            polygon = polygon.difference(Point(centre).buffer(0.3 * radii.mean()))
        if number % 4 == 0:  # another part, along the lines of the grid
            polygon = polygon.union(box(*rng.integers(0, 10, 2), *rng.integers(11, 20, 2)))
        polygons.append(polygon)
    row, column = np.indices((25, 30)).reshape(2, -1)
    squares = shapely.box(column, row, column + 1, row + 1)
    expected = [shapely.area(shapely.intersection(polygon, squares)) for polygon in polygons]
    found = Bags.from_polygons(Grid((25, 30), mpp=8.0), [*polygons, None, shapely.Polygon()]).weights.toarray()
    np.testing.assert_allclose(found[:-2], expected, atol=1e-9)
    assert not found[-2:].any()


def test_a_polygon_outside_the_image_is_an_empty_bag():
    polygons = Bags.from_polygons(
        Grid((4, 4), mpp=1.0), [box(100, 100, 108, 108), box(-20, -20, -8, 0), box(4, 4, 12, 12)]
    )
    np.testing.assert_allclose(polygons.weights.sum(1).ravel(), [[0, 0, 1]])


def test_a_visium_spot_covers_its_area_and_not_more_than_its_superpixels():
    grid = Grid((40, 40), mpp=0.5)
    bags = Bags.from_disks(grid, np.full((1, 2), 328.0), 55.0)  # centred on a superpixel
    assert bags.weights.sum() * 64 == pytest.approx(np.pi * 27.5**2, rel=2e-3)
    assert (bags.weights.toarray() > 0.5).sum() == 37  # the 37 of 7 × 7 that the paper counts


def test_constant_density_gives_spots_their_area():
    rng = np.random.default_rng(0)
    grid = Grid((60, 50), mpp=0.5)
    radii = rng.uniform(20, 60, 8)
    bags = Bags.from_disks(grid, rng.uniform(120, 600, (8, 2)), radii)
    np.testing.assert_allclose(bags.weights @ np.ones(grid.size), np.pi * radii**2 / grid.pitch_px**2, rtol=5e-3)


def test_mask_removes_its_outside_only():
    grid = Grid((20, 20), mpp=0.5)
    bags = Bags.from_disks(grid, [(160.0, 160.0)], 55.0)
    mask = np.zeros(grid.shape, bool)
    mask[:10] = True
    kept, whole = (b.weights.toarray().reshape(grid.shape) for b in (bags.within(mask), bags))
    np.testing.assert_array_equal(kept[:10], whole[:10])
    assert kept[10:].sum() == 0


def test_padded_bags_are_the_same_sums():
    rng = np.random.default_rng(0)
    grid = Grid((30, 30), mpp=0.5)
    bags = Bags.from_disks(grid, rng.uniform(0, 480, (5, 2)), rng.uniform(20, 60, 5))
    values = rng.random(grid.size)
    index, weight = bags.padded()
    np.testing.assert_allclose((weight * values[index]).sum(1), bags.weights @ values, rtol=1e-6)
