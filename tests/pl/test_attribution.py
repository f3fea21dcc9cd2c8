"""What each position adds is drawn where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scanpy as sc
from matplotlib.collections import EllipseCollection
from spatialdata import SpatialData

from sphistex import datasets, pl
from sphistex.tl import OutcomeModel, fit_outcome


@pytest.fixture(scope="module")
def fitted() -> tuple[dict[str, SpatialData], OutcomeModel]:
    sections, clinical = datasets.simulate_cohort(n_patients=4, size_um=500, n_genes=10)
    for section in sections.values():
        spots = section.tables["counts"]
        sc.pp.normalize_total(spots, target_sum=1e4)
        sc.pp.log1p(spots)
    clinical["response"] = [0, 1, 0, 1]
    how: dict[str, Any] = {"table_key": "counts", "folds": 2, "n_models": 1, "n_permutations": 0}
    return sections, fit_outcome(sections, clinical, response="response", **how)


def test_each_position_has_its_own_value_in_place(fitted):
    sections, model = fitted
    section = sections["S002"]
    figure = pl.attribution(section, model, return_fig=True)
    assert figure is not None
    (disks,) = (one for one in figure.axes[1].collections if isinstance(one, EllipseCollection))
    assert np.asarray(disks.get_array()) == pytest.approx(model.attribution(section).to_numpy())
    # simulated sections have 0.5 µm per pixel, which follows from the distance of the spots
    assert np.asarray(disks.get_offsets()) == pytest.approx(
        np.asarray(section["counts"].obsm["spatial"]) * 0.5, rel=1e-3
    )
    assert figure.axes[0].images[0].get_extent() == pytest.approx((0, 500, 500, 0), abs=20)


def test_without_a_picture_it_says_so(fitted):
    sections, model = fitted
    section = SpatialData(tables={"counts": sections["S001"]["counts"]}, shapes={"spots": sections["S001"]["spots"]})
    with pytest.raises(ValueError, match="no image"):
        pl.attribution(section, model)
    with pytest.raises(KeyError, match="'histology' is not in"):
        bare = SpatialData(images={"image": sections["S001"]["image"]})
        pl.attribution(bare, OutcomeModel(**vars(model) | {"columns": model.columns | {"table_key": "histology"}}))
