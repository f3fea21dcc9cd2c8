"""Recovery of a planted programme from a simulated cohort, and what the network attributes it to.

    python benchmarks/cohort.py --patients 60 --permutations 20
    python benchmarks/cohort.py --patients 80 --measured 20 --permutations 20

The outcome is learnt from measured spots; or, with ``--measured``, from spots that a histology model, fitted to the
sections of so many patients, predicts from the images of the others. Prints the scores of both models beside the
concordance index of the hidden level itself; the share of the tumour in the differences between patients' risks, and in
the absolute attribution, beside its share of the area; and writes pictures with ``--out``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import scanpy as sc
from scipy.spatial import KDTree
from spatialdata import SpatialData

import sphistex as sx
from sphistex.metrics.concordance import concordance

TABLE, ENCODER = "counts", "efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--size-um", type=float, default=800.0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--permutations", type=int, default=20)
    parser.add_argument("--measured", type=int, default=0, help="patients whose spots the images of the others get")
    parser.add_argument("--region", help="pool only in this compartment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for pictures")
    arguments = parser.parse_args()
    sx.settings.progress = False
    started = time.perf_counter()
    sections, clinical = sx.datasets.simulate_cohort(
        n_patients=arguments.patients, size_um=arguments.size_um, seed=arguments.seed
    )
    if arguments.measured:
        sections = predicted(sections, arguments.measured)
        clinical = clinical.loc[list(sections)]
    else:
        for section in sections.values():
            sc.pp.normalize_total(section.tables[TABLE], target_sum=1e4)
            sc.pp.log1p(section.tables[TABLE])
    prepared = time.perf_counter()
    model = sx.tl.fit_outcome(
        sections,
        clinical,
        time="time",
        event="event",
        table_key=TABLE,
        region=arguments.region,
        region_key="compartment",
        folds=arguments.folds,
        n_permutations=arguments.permutations,
        seed=arguments.seed,
    )
    print(model.scores.round(3).to_string(), flush=True)
    found = {
        "true_concordance": round(concordance(clinical["z"], clinical["time"], clinical["event"]), 3),
        **shares(model, sections),
        "preparation_s": round(prepared - started),
        "fit_s": round(model.info["seconds"]),
    }
    print(json.dumps(found, indent=1))
    if arguments.out:
        riskiest = model.predictions["network"].idxmax()
        sx.pl.kaplan_meier(model, time_label="months", save=arguments.out / "kaplan_meier.png")
        sx.pl.attribution(sections[riskiest], model, save=arguments.out / "attribution.png")


def predicted(sections: dict[str, SpatialData], n_measured: int) -> dict[str, SpatialData]:
    """Sections of the images of all patients but the first, with what a model of the first ones predicts for them."""
    names = list(sections)
    model = sx.tl.fit_histology([sections[name] for name in names[:n_measured]], genes="all", encoder=ENCODER)
    found = {}
    for name in names[n_measured:]:
        section = sections[name]
        alone = SpatialData(images={"image": section.images["image"]})
        sx.tl.predict_histology(alone, model, mpp=sx.pp.microns_per_pixel(section), key_added=TABLE)
        positions, spots = (one.tables[TABLE].obsm["spatial"] for one in (alone, section))
        nearest = KDTree(spots).query(positions)[1]
        alone.tables[TABLE].obs["compartment"] = section.tables[TABLE].obs["compartment"].to_numpy()[nearest]
        found[name] = alone
    return found


def shares(model: sx.tl.OutcomeModel, sections: dict[str, SpatialData]) -> dict[str, float]:
    """Of the tumour: in the variance of the risk between patients, in the absolute attribution, and in the area."""
    inside, total, absolute, area = [], [], [], []
    for section in sections.values():
        tumour = (section.tables[TABLE].obs["compartment"] == "tumour").to_numpy()
        found = model.attribution(section).to_numpy()
        inside.append(found[tumour].sum())
        total.append(found.sum())
        absolute.append(np.abs(found[tumour]).sum() / np.abs(found).sum())
        area.append(tumour.mean())
    return {
        "tumour_share_of_risk_variance": round(float(np.cov(inside, total)[0, 1] / np.var(total, ddof=1)), 3),
        "tumour_share_of_absolute_attribution": round(float(np.mean(absolute)), 3),
        "tumour_share_of_area": round(float(np.mean(area)), 3),
    }


if __name__ == "__main__":
    main()
