"""A map in axes of the user's is the one of the whole picture, and the rest of the user's figure stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from spatialdata import SpatialData

from sphistex import datasets, pl, tl
from sphistex.tl import OutcomeModel

PATTERNS = pd.DataFrame(
    {"gene": ["A", "B"] * 2, "statistic": ["moran"] * 2 + ["geary"] * 2, "before": 0.2, "after": 0.6, "null": 0.3}
)
PICTURES: dict[str, Callable[..., Figure | None]] = {
    "activity": lambda sdata, **how: pl.activity(sdata, "first", table_key="counts", **how),
    "aggregates": pl.aggregates,
    "annotation": pl.annotation,
    "enrichment": lambda sdata, **how: pl.enrichment(sdata, table_key="counts", **how),
    "expression": lambda sdata, **how: pl.expression(sdata, sdata["superres"].var_names[0], **how),
    "features": lambda sdata, **how: pl.features(sdata, key="features", **how),
    "histology": lambda sdata, **how: pl.histology(sdata, sdata["counts"].var_names[0], table_key="counts", **how),
    "interface": pl.interface,
    "patterns": lambda _, **how: pl.patterns(PATTERNS[:2], **how),
    "profiles": lambda sdata, **how: pl.profiles(sdata, sdata["superres"].var_names[0], **how),
    "regions": lambda sdata, **how: pl.regions(sdata, "side", table_key="counts", **how),
}
SEVERAL: dict[str, tuple[str, Callable[..., Figure | None]]] = {
    "activity": ("gene_sets", lambda sdata, ax: pl.activity(sdata, table_key="counts", ax=ax)),
    "annotation": ("columns", lambda sdata, ax: pl.annotation(sdata, ["annotation", "compartment"], ax=ax)),
    "expression": ("genes", lambda sdata, ax: pl.expression(sdata, sdata["superres"].var_names[:2], ax=ax)),
    "histology": (
        "genes",
        lambda sdata, ax: pl.histology(sdata, sdata["counts"].var_names[:2], table_key="counts", ax=ax),
    ),
    "histology, measured": (
        "measured_key",
        lambda sdata, ax: PICTURES["histology"](sdata, measured_key="counts", ax=ax),
    ),
    "patterns": ("statistics", lambda _, ax: pl.patterns(PATTERNS, ax=ax)),
    "profiles": ("genes", lambda sdata, ax: pl.profiles(sdata, sdata["superres"].var_names[:2], ax=ax)),
    "regions": (
        "measured_column",
        lambda sdata, ax: PICTURES["regions"](sdata, measured_column="side", ax=ax),
    ),
}


@pytest.fixture(scope="module")
def section() -> SpatialData:
    """A section with something to draw for every picture."""
    sdata = datasets.simulate(size_um=(600, 800), n_genes=20, seed=1)
    tl.superpixel_features(sdata, encoder="efficientnet_lite0", key_added="features")
    tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    spots, result = sdata.tables["counts"], sdata.tables["superres"]
    left = result.obsm["spatial"][:, 0] < 800
    result.obs["annotation"] = pd.Categorical(np.where(left, "left", "right"))
    result.obs["compartment"] = result.obs["annotation"]
    tl.interface(sdata, ("annotation", "left"))
    tl.aggregates(sdata, list(result.var_names[:3]), threshold=0.0, smooth_um=8, min_area_um2=1000)
    spots.obs["side"] = np.where(spots.obsm["spatial"][:, 0] < 800, "left", "right")
    sets = {"first": list(spots.var_names[:10]), "last": list(spots.var_names[10:])}
    tl.enrich(sdata, table_key="counts", gene_sets=sets, groupby="side")
    return sdata


@pytest.fixture
def own() -> Iterator[tuple[Figure, Axes, Axes]]:
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    yield figure, left, right
    plt.close(figure)


def contents(ax: Axes) -> list[NDArray]:
    """The values of the maps, dots, lines and curves of a panel."""
    drawn: list[Any] = [image.get_array() for image in ax.images] + [line.get_xydata() for line in ax.lines]
    for one in ax.collections:
        drawn.append(np.concatenate(one.get_segments()) if isinstance(one, LineCollection) else one.get_offsets())
        drawn.append(one.get_array())
    return [np.ma.filled(np.ma.asarray(values, dtype=float), np.nan) for values in drawn if values is not None]


def check_same_map(draw: Callable[..., Figure | None], own: tuple[Figure, Axes, Axes]) -> None:
    figure, left, right = own
    whole = draw(return_fig=True)
    assert whole is not None
    panel = [ax for ax in whole.axes if ax.get_label() != "<colorbar>"][-1]
    assert draw(ax=right, return_fig=True) is figure
    assert draw(ax=figure.add_subplot()) is None
    assert plt.fignum_exists(figure.number), "it is the user's, and stays open"
    expected, found = contents(panel), contents(right)
    assert len(expected) == len(found) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert right.get_xlim() == panel.get_xlim() and right.get_title() == panel.get_title()
    assert not left.has_data() and not left.get_title() and not figure.legends
    figure.draw_without_rendering()


@pytest.mark.parametrize("name", PICTURES)
def test_the_map_alone_is_drawn_into_the_users_axes(section, own, name):
    check_same_map(lambda **how: PICTURES[name](section, **how), own)


def test_what_drives_a_risk_too(own):
    sections, clinical = datasets.simulate_cohort(n_patients=4, size_um=500, n_genes=10)
    for one in sections.values():
        sc.pp.normalize_total(one.tables["counts"], target_sum=1e4)
        sc.pp.log1p(one.tables["counts"])
    clinical["response"] = [0, 1, 0, 1]
    how: dict[str, Any] = {"table_key": "counts", "folds": 2, "n_models": 1, "n_permutations": 0}
    model: OutcomeModel = tl.fit_outcome(sections, clinical, response="response", **how)
    check_same_map(lambda **how: pl.attribution(sections["S002"], model, **how), own)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_maps_do_not_go_into_one_panel(section, own, name):
    _, left, _ = own
    argument, draw = SEVERAL[name]
    with pytest.raises(ValueError, match=f"{argument}.*ax= takes"):
        draw(section, left)
    assert not left.has_data()
