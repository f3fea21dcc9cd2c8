"""How well a histology model predicts sections, or patients, that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex.encoders.base import resolve_device
from sphistex.nn.histology import HistologyModel, HistologyParameters, LatticeSection, Predicted, histology_parameters
from sphistex.settings import settings
from sphistex.tl._measured import Measured, classes_of, codes_of
from sphistex.tl._sections import Placed, resolve_sections
from sphistex.tl.fit import check_seed
from sphistex.tl.histology import measured_sections
from sphistex.tl.lattice_features import SCALES

# What predicts one section from others.
Method = Callable[[Sequence[LatticeSection], LatticeSection], Predicted]


@dataclass(frozen=True)
class HistologyScores:
    """Scores of sections that were left out.

    Parameters
    ----------
    expression
        One row for each section, method and gene: ``pearson``, ``spearman`` over the section's positions (0 where the
        prediction does not vary) and ``rmse`` of log-normalised expression.
    regions
        One row for each section, method and class: ``auc`` of its probability against all other classes, NaN where the
        section lacks the class or has no other; empty where no regions were learnt.
    """

    expression: pd.DataFrame
    regions: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Means over genes and sections, one row for each method."""
        table = self.expression.groupby("method", sort=False)[["pearson", "spearman", "rmse"]].mean()
        if len(self.regions):
            table = table.join(self.regions.groupby("method", sort=False)["auc"].mean())
        return table


def cross_validate_histology(
    sdata: Sequence[SpatialData],
    *,
    groups: str | Sequence[Any] = "section",
    genes: int | Sequence[str] | None = None,
    regions_key: str | None = None,
    encoder: Any = "auto",
    weights: str | Path | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
    scales: Sequence[int] = SCALES,
    stain_versions: int = 0,
    features_key: str = "lattice_features",
    tissue_key: str = "tissue",
    seed: int | None = None,
    device: str | None = None,
    **parameters: Any,
) -> HistologyScores:
    """Leave out one section, or all sections of one patient, after the other, and predict them from the rest.

    Everything is fitted anew without what is left out, scales of features and of genes included; only which genes are
    scored is chosen on all sections. Beside the model stand what it has to beat: the ``mean`` of each gene, ``ridge``
    regression on the same features of the position, and ``nearest``, the expression of the position of another section
    whose features are most alike.

    Parameters
    ----------
    sdata
        Measured sections, as for :func:`fit_histology`; lattice features are made where there are none.
    groups
        ``"section"``; or the column of the counts' ``obs`` that says which patient a section is from; or one label for
        each section.
    genes, regions_key, encoder, weights, scales, stain_versions, features_key, tissue_key, seed, device, parameters
        As in :func:`fit_histology`.
    image_key, shapes_key, table_key, mpp, spot_pitch_um
        As in :func:`super_resolve`, for all sections.

    Returns
    -------
    Scores by section, method and gene, and by region; ``.summary()`` has their means.

    Raises
    ------
    KeyError, TypeError, ValueError
        If sections cannot be used, there are fewer than two groups, or without a group there is only one region to
        learn.

    Examples
    --------
    >>> import sphistex as sx
    >>> sections = [sx.datasets.simulate(size_um=700, n_genes=20, seed=seed) for seed in (0, 1)]
    >>> how = {"encoder": "efficientnet_lite0", "epochs": 2, "n_models": 1}
    >>> scores = sx.tl.cross_validate_histology(sections, genes=10, **how)
    >>> list(scores.summary().index)
    ['model', 'ridge', 'nearest', 'mean']
    """
    chosen = histology_parameters(**parameters)
    seed = check_seed(seed)
    where = resolve_device(device or settings.device)
    if isinstance(sdata, SpatialData) or len(sdata) < 2:
        raise ValueError(
            "cross-validation leaves one section out and learns from the others: pass at least two. With one, "
            "sphistex.tl.fit_histology fits a model, and nothing tells how well it predicts others"
        )
    elements: dict[str, Any] = {"image_key": image_key, "shapes_key": shapes_key, "table_key": table_key, "mpp": mpp}
    elements["spot_pitch_um"] = spot_pitch_um
    placed = resolve_sections(sdata, None, elements, features_key=features_key, tissue_key=tissue_key, strict=False)
    labels = _labels(placed, groups)
    if regions_key is not None:
        classes = classes_of(placed, regions_key)
        _check_folds(
            [codes_of(one.section.table, regions_key, classes) for one in placed], classes, labels, regions_key
        )
    measured = measured_sections(
        placed,
        genes,
        regions_key,
        encoder=encoder,
        weights=weights,
        scales=scales,
        stain_versions=stain_versions,
        features_key=features_key,
        tissue_key=tissue_key,
        device=device,
    )
    if regions_key is not None:  # once more, of the spots on tissue
        on_tissue = [one.regions for one in measured.sections if one.regions is not None]
        _check_folds(on_tissue, measured.classes, labels, regions_key)
    methods = _methods(measured, chosen, seed, where)
    expression, regions = [], []
    folds = [(label, [i for i, other in enumerate(labels) if other == label]) for label in dict.fromkeys(labels)]
    with tqdm(total=len(folds), desc="cross-validating", unit="fold", disable=not settings.progress) as bar:
        for label, left_out in folds:
            seen = [one for i, one in enumerate(measured.sections) if i not in left_out]
            for name, method in methods.items():
                for number in left_out:
                    one = measured.sections[number]
                    found = method(seen, one)
                    place = {"group": label, "section": number, "method": name}
                    expression.append(pd.DataFrame(place | _scores(found.expression, one, measured.genes)))
                    regions.append(pd.DataFrame(place | _aucs(found.probabilities, one, measured.classes)))
            bar.update()
    return HistologyScores(pd.concat(expression, ignore_index=True), pd.concat(regions, ignore_index=True))


def _labels(placed: Sequence[Placed], groups: str | Sequence[Any]) -> list[str]:
    """Group of each section."""
    if isinstance(groups, str) and groups == "section":
        return [str(number) for number in range(len(placed))]
    if isinstance(groups, str):
        labels = []
        for one in placed:
            obs = one.section.table.obs
            found = sorted(set(obs[groups].dropna().astype(str))) if groups in obs else None
            if found is None or len(found) != 1:
                raise ValueError(
                    f"groups={groups!r} must be a column of obs with one value in each section, but {one.called} has "
                    f"{f'the values {found[:3]}' if found else f'the columns {list(obs.columns)}'}; "
                    "or pass one label for each section"
                )
            labels += found
    else:
        labels = [str(label) for label in groups]
    if len(labels) != len(placed):
        raise ValueError(f"groups={groups!r} has {len(labels)} labels, but there are {len(placed)} sections")
    if len(set(labels)) < 2:
        raise ValueError(
            f"groups={groups!r}: all sections are of {labels[0]!r}, so that nothing is left to learn from when it is "
            "left out; use groups='section', which says how well other sections of the same patient are predicted"
        )
    return labels


def _check_folds(
    regions: Sequence[NDArray[np.int64]], classes: Sequence[str], labels: Sequence[str], regions_key: str
) -> None:
    """Refuse folds in which a class is never seen."""
    for label in dict.fromkeys(labels):
        there = set(np.concatenate([one for one, other in zip(regions, labels, strict=True) if other != label]))
        lacking = [name for code, name in enumerate(classes) if code not in there]
        if lacking:
            raise ValueError(
                f"regions_key={regions_key!r}: without {label!r}, no spot is of class {', '.join(map(repr, lacking))}, "
                "which then cannot be learnt; merge rare classes or set them to NaN"
            )


def _methods(measured: Measured, chosen: HistologyParameters, seed: int, device: Any) -> dict[str, Method]:
    """What is compared, by name."""

    def fitted(parameters: HistologyParameters) -> Method:
        known: dict[tuple[int, ...], HistologyModel] = {}  # all sections of a group have one model

        def predict(seen: Sequence[LatticeSection], one: LatticeSection) -> Predicted:
            key = tuple(id(section) for section in seen)
            if key not in known:
                known.clear()
                known[key] = HistologyModel.fit(
                    seen, measured.genes, measured.classes, parameters, seed=seed, device=device
                )
            return known[key].predict(one)

        return predict

    linear = replace(chosen, ridge=1.0, n_models=1, epochs=1, widths=(1,), mixers=0)
    return {
        "model": fitted(chosen),
        "ridge": fitted(linear),
        "nearest": _nearest(measured),
        "mean": _mean(measured),
    }


def _nearest(measured: Measured) -> Method:
    def predict(seen: Sequence[LatticeSection], one: LatticeSection) -> Predicted:
        features = np.concatenate([section.features for section in seen])
        mean, scale = features.mean(0), features.std(0) + 1e-4
        place = KDTree((features - mean) / scale).query((one.features - mean) / scale)[1]
        regions = _regions(seen)
        probabilities = np.eye(len(measured.classes))[regions[place].clip(0)] if measured.classes else _none(one)
        return Predicted(_expression(seen)[place], probabilities)

    return predict


def _mean(measured: Measured) -> Method:
    def predict(seen: Sequence[LatticeSection], one: LatticeSection) -> Predicted:
        mean = np.broadcast_to(_expression(seen).mean(0), (len(one.features), len(measured.genes)))
        known = _regions(seen)
        share = np.bincount(known[known >= 0], minlength=len(measured.classes)) / max((known >= 0).sum(), 1)
        probabilities = np.broadcast_to(share, (len(one.features), len(share))) if measured.classes else _none(one)
        return Predicted(mean, probabilities)

    return predict


def _expression(sections: Sequence[LatticeSection]) -> NDArray[np.float32]:
    return np.concatenate([one.expression for one in sections if one.expression is not None])


def _regions(sections: Sequence[LatticeSection]) -> NDArray[np.int64]:
    known = [one.regions for one in sections if one.regions is not None]
    return np.concatenate(known) if known else np.zeros(0, dtype=np.int64)


def _none(one: LatticeSection) -> NDArray[np.float32]:
    return np.zeros((len(one.features), 0), dtype=np.float32)


def _scores(found: NDArray[Any], one: LatticeSection, genes: Sequence[str]) -> dict[str, Any]:
    truth = np.asarray(one.expression, dtype=float)
    ranks = (rankdata(values, axis=0) for values in (found, truth))
    return {
        "gene": list(genes),
        "pearson": _pearson(np.asarray(found, dtype=float), truth),
        "spearman": _pearson(*ranks),
        "rmse": np.sqrt(((found - truth) ** 2).mean(0)),
    }


def _pearson(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Correlation of each column; 0 where one does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.where(size > 1e-9, (a * b).sum(0) / np.maximum(size, 1e-9), 0.0)


def _aucs(found: NDArray[Any], one: LatticeSection, classes: Sequence[str]) -> dict[str, Any]:
    known = np.zeros(0, dtype=bool) if one.regions is None else one.regions >= 0
    auc = []
    for code in range(len(classes)):
        own = one.regions[known] == code if one.regions is not None else known
        auc.append(roc_auc_score(own, found[known, code]) if 0 < own.sum() < len(own) else np.nan)
    return {"region": list(classes), "auc": auc}
