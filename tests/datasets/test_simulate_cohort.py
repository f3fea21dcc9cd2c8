"""A simulated cohort: the programme is where it should be, and the outcome follows it as far as is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

from sphistex.datasets import simulate_cohort
from sphistex.datasets.cohort import _clinical
from sphistex.metrics import concordance


@pytest.fixture(scope="module")
def cohort() -> tuple[dict[str, SpatialData], pd.DataFrame]:
    return simulate_cohort(n_patients=4, size_um=500, n_genes=40, seed=2)


def test_programme_is_raised_in_the_tumour_alone(cohort):
    sections, clinical = cohort
    levels = {}
    for name, section in sections.items():
        truth = section.tables["truth"]
        programme = truth.var["programme"].to_numpy()
        assert programme.sum() == 8 and (truth.var["kind"][programme] == "broad").all()
        tumour = (truth.obs["compartment"] == "tumour").to_numpy()
        rate = truth.layers["expected"] / truth.obsm["rna"].to_numpy().sum(1, keepdims=True).clip(1e-3)
        levels[name] = [np.log(np.median(rate[place][:, programme], axis=0)) for place in (tumour, ~tumour)]
    for one in sections:
        for other in sections:
            inside, outside = (a - b for a, b in zip(levels[one], levels[other], strict=True))
            gap = clinical["z"][one] - clinical["z"][other]
            assert np.median(inside) == pytest.approx(0.5 * gap, abs=0.15)
            assert np.median(outside) == pytest.approx(0, abs=0.25)


def test_spots_know_their_compartment(cohort):
    for section in cohort[0].values():
        spots, truth = section.tables["counts"], section.tables["truth"]
        marker = (truth.var["kind"] == "marker") & (truth.var["cell_type"] == "tumour")
        share = spots[:, marker.to_numpy()].X.sum(1) / spots.X.sum(1)
        tumour = (spots.obs["compartment"] == "tumour").to_numpy()
        assert np.asarray(share)[tumour].mean() > 2 * np.asarray(share)[~tumour].mean()


def test_nuclei_of_the_tumour_show_the_level_and_expression_does_not_depend_on_it(cohort):
    hidden, _ = simulate_cohort(n_patients=4, size_um=500, n_genes=40, seed=2, visible=False)
    for name, section in cohort[0].items():
        np.testing.assert_array_equal(
            hidden[name].tables["truth"].layers["expected"], section["truth"].layers["expected"]
        )
        assert not np.array_equal(hidden[name]["image"].to_numpy(), section["image"].to_numpy())


def test_same_seed_same_cohort(cohort):
    again, clinical = simulate_cohort(n_patients=4, size_um=500, n_genes=40, seed=2)
    pd.testing.assert_frame_equal(clinical, cohort[1])
    np.testing.assert_array_equal(again["S001"]["image"].to_numpy(), cohort[0]["S001"]["image"].to_numpy())
    assert (again["S001"]["counts"].X != cohort[0]["S001"]["counts"].X).nnz == 0


@pytest.mark.parametrize("wanted", [0.5, 0.7, 0.8])
def test_the_level_predicts_as_well_as_is_said(wanted: float):
    clinical = _clinical([f"S{i}" for i in range(3000)], wanted, np.random.default_rng(0))
    found = concordance(clinical["z"], clinical["time"], clinical["event"])
    assert found == pytest.approx(clinical.attrs["true_concordance"])
    assert found == pytest.approx(wanted, abs=0.02)
    assert clinical["event"].mean() == pytest.approx(0.7, abs=0.03)
    assert (clinical["time"] > 0).all()
    responders = clinical["response"] == 1
    assert clinical["z"][responders].mean() > clinical["z"][~responders].mean() + 0.5
    assert concordance(clinical["age"], clinical["time"], clinical["event"]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "arguments", [{"n_patients": 1}, {"n_genes": 4}, {"true_concordance": 0.3}, {"depth": 0}, {"size_um": 100}]
)
def test_bad_arguments_are_named(arguments: dict[str, float]):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}="):
        simulate_cohort(**arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_programme_is_found_from_measured_spots():
    pytest.importorskip("sksurv")
    import scanpy as sc

    from sphistex.tl import fit_outcome

    sections, clinical = simulate_cohort(n_patients=60, size_um=800, seed=0)
    for section in sections.values():
        spots = section.tables["counts"]
        sc.pp.normalize_total(spots, target_sum=1e4)
        sc.pp.log1p(spots)
    model = fit_outcome(sections, clinical, time="time", event="event", table_key="counts", n_permutations=4)
    assert (model.scores["score"] > 0.7).all()
    assert model.scores["shuffled"].between(0.35, 0.6).all()
