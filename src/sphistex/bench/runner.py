"""Run methods on sections, and write what comes out as it comes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sphistex import encoders
from sphistex.bench import pictures, report
from sphistex.bench.costs import measured
from sphistex.bench.datasets import Source, find
from sphistex.bench.genes import Genes, check_wanted
from sphistex.bench.methods import CUT_ON_CPU, DEFAULT, METHODS
from sphistex.bench.problem import Method, Problem
from sphistex.bench.scores import CEILING, TISSUE, score
from sphistex.bench.trials import make_trials
from sphistex.encoders.base import resolve_device
from sphistex.settings import settings
from sphistex.tl.fit import check_seed

logger = logging.getLogger("sphistex")

_PROTOCOLS = "abc"
_COLUMNS = ["dataset", "protocol", "area", "method", "gene", "scale_um", "statistic", "value"]


def run(
    datasets: str | Path | Sequence[str | Path],
    *,
    methods: Sequence[str] | Mapping[str, Method] | None = None,
    protocols: str = _PROTOCOLS,
    genes: Genes | None = None,
    data: str | Path | None = None,
    encoder: Any = "efficientnet_lite0",
    weights: str | Path | None = None,
    out: str | Path,
    seed: int = 0,
    device: str | None = None,
) -> pd.DataFrame:
    """Compare methods on sections whose expression is known, with the same spots, features and genes.

    Parameters
    ----------
    datasets
        Names of sections: ``"simulated"``, ``"simulated:SEED"``, ``"kidney"``, ``"pancreas"``, ``"her2st:C2"`` to
        ``"her2st:C5"``, ``"mouse-brain-hd"``, ``"breast-hd"``, ``"breast-xenium-1"`` to ``"breast-xenium-3"``; or
        paths of SpatialData stores with spots and a table ``"truth"``, as :func:`sphistex.pp.pseudo_visium` makes them.
    methods
        Names of methods; or your own functions by name, each taking a :class:`sphistex.bench.Problem` and returning
        counts per tissue superpixel (n_superpixels, n_genes). Default: all but the published model's ablations.
    protocols
        Any of ``"a"`` (spots are made from the counts that are scored against, as published), ``"b"`` (the same maps,
        scored outside every spot) and ``"c"`` (spots from one half of the counts, scored against the other, in all
        the tissue and outside every spot). Sections without a truth are scored at held-out spots instead.
    genes
        A number (one half the most variable, one half the most abundant genes, mitochondrial ones left out), names,
        ``"variable:1000"`` for as many of the most variable, or ``"all"`` for those seen in 2 % of the superpixels.
        Default: what suits the section.
    data
        Folder with the files of named sections; default: the environment variable SPHISTEX_DATA.
    encoder, weights
        Image encoder, and file with its weights, see :func:`sphistex.encoders.get`.
    out
        Folder for what is made: ``scores.csv`` and ``costs.csv``, to which every method is added as soon as it is
        done, ``report.md``, ``bars.png`` and ``maps_<section>.png``. What an earlier run left there is replaced.
        On a CPU published networks are only begun: the column ``cut_short`` of the costs and the report say which.
    seed
        Seed of everything random.
    device
        Torch device; default: that of the settings.

    Returns
    -------
    Tidy table with columns ``dataset``, ``protocol``, ``area`` (``"tissue"``, ``"off-spot"`` or ``"held-out ..."``),
    ``method`` (the noise ceiling is one), ``gene``, ``scale_um``, ``statistic`` and ``value``.

    Raises
    ------
    FileNotFoundError, KeyError, OSError, TypeError, ValueError
        If an argument makes no sense, files are missing or ``out`` cannot be written, before any work; or if a
        section or what a method returns cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> import sphistex as sx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = f"{folder}/mine.zarr"
    ...     sx.datasets.simulate(size_um=700, n_genes=20).write(store)
    ...     scores = sx.bench.run(store, methods=["nearest", "linear"], protocols="c", out=f"{folder}/bench")
    >>> r = scores.query("statistic == 'pearson' and area == 'tissue' and scale_um == 16").groupby("method").value
    >>> bool(r.mean()["linear"] < r.mean()["noise ceiling"])
    True
    """
    chosen = _methods(methods)
    if not protocols or not set(protocols) <= set(_PROTOCOLS):
        raise ValueError(f'protocols={protocols!r} must be made of the letters "a", "b" and "c"')
    check_wanted(genes)
    seed, where = check_seed(seed), str(resolve_device(device or settings.device))
    names = [datasets] if isinstance(datasets, str | Path) else list(datasets)
    sources = [find(name, None if data is None else Path(data)) for name in names]
    labels = [source.name for source in sources]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"datasets={names!r}: give at least one section, and none twice")
    loaded = encoders.get(encoder, weights=weights, device=where)
    folder = _emptied(Path(out))

    done = _Done([], [], [])
    for source in sources:
        wanted = source.genes if genes is None else genes
        _section(
            source, chosen, folder, done, protocols=protocols, genes=wanted, encoder=loaded, seed=seed, device=where
        )
    if not done.costs:
        raise ValueError(f"protocols={protocols!r}: nothing could be scored, see the warnings")
    table = pd.concat([part for part in done.scores if len(part)], ignore_index=True)
    pictures.bars(table, folder / "bars.png", seed=seed)
    made = report.Made(facts=pd.DataFrame(done.facts), encoder=loaded.name, seed=seed, device=where)
    (folder / "report.md").write_text(report.write(table, pd.concat(done.costs, ignore_index=True), made))
    return table


@dataclass
class _Done:
    """Tables of what has been run."""

    scores: list[pd.DataFrame]
    costs: list[pd.DataFrame]
    facts: list[dict[str, object]]


def _section(
    source: Source, methods: Mapping[str, Method], folder: Path, done: _Done, *, seed: int, device: str, **how: Any
) -> None:
    """Run the methods on one section; nothing of it is held afterwards."""
    logger.info("%s ...", source.name)
    trials = make_trials(source.read(), seed=seed, device=device, **how)
    gallery = None
    for trial in trials:
        problem, areas = trial.problem, trial.areas
        done.facts.append(_facts(source.name, trial.name, problem))
        ceilings = [area.ceiling(problem.genes, seed) for area in areas]
        for area, table in zip(areas, ceilings, strict=True):
            if area.name == TISSUE and gallery is None:
                gallery = pictures.Gallery.of(area, problem, table)
            done.scores.append(_add(folder, table, source.name, area.protocol, area.name, CEILING))
        for name, method in methods.items():
            with measured() as cost:
                values = _checked(name, method(problem), problem)
            scored = [score(area, problem, values, table) for area, table in zip(areas, ceilings, strict=True)]
            for area, table in zip(areas, scored, strict=True):
                done.scores.append(_add(folder, table, source.name, area.protocol, area.name, name))
            if gallery is not None:
                gallery.add(name, values, problem)
            del values
            row = {"dataset": source.name, "protocol": trial.name, "method": name} | vars(cost)
            row["cut_short"] = _cut_short(name, method, device)
            done.costs.append(_append(folder / "costs.csv", pd.DataFrame([row])))
            logger.info("%s, %s: %s took %.1f s, r = %s", source.name, trial.name, name, cost.seconds, _r(scored[0]))
    if gallery is not None:
        gallery.draw(folder / f"maps_{source.name.replace(':', '-')}.png")


def _methods(methods: Sequence[str] | Mapping[str, Method] | None) -> dict[str, Method]:
    if isinstance(methods, Mapping):
        if not methods:
            raise ValueError("methods={}: give at least one function by its name, or leave methods out")
        return dict(methods)
    names = list(DEFAULT) if methods is None else [methods] if isinstance(methods, str) else list(methods)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(f"methods={names!r}: choose from {', '.join(METHODS)}")
    return {name: METHODS[name] for name in names}


def _cut_short(name: str, method: Method, device: str) -> str:
    """How far a method is run, where that is not to the end."""
    return CUT_ON_CPU.get(name, "") if device == "cpu" and METHODS.get(name) is method else ""


def _emptied(out: Path) -> Path:
    """The folder, which can be written, without what an earlier run left there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for pattern in ("scores.csv", "costs.csv", "report.md", "bars.png", "maps_*.png"):
            for old in out.glob(pattern):
                old.unlink()
        (out / "scores.csv").write_text(",".join(_COLUMNS) + "\n")
    except OSError as error:
        raise OSError(f"out={str(out)!r} cannot be written: {error.strerror}") from error
    return out


def _checked(name: str, values: NDArray, problem: Problem) -> NDArray[np.float32]:
    wanted = (int(problem.mask.sum()), len(problem.genes))
    if np.shape(values) != wanted or not np.isfinite(values).all():
        raise ValueError(
            f"methods: {name!r} must return finite counts of {wanted[0]} superpixels × {wanted[1]} genes, not an array "
            f"of shape {np.shape(values)}{'' if np.shape(values) != wanted else ' with NaN or infinite values'}"
        )
    return np.asarray(values, dtype=np.float32)


def _add(folder: Path, table: pd.DataFrame, dataset: str, protocol: str, area: str, method: str) -> pd.DataFrame:
    whole = table.assign(dataset=dataset, protocol=protocol, area=area, method=method)[_COLUMNS]
    return _append(folder / "scores.csv", whole)


def _append(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    table.to_csv(path, mode="a", header=not path.exists(), index=False)
    return table


def _facts(dataset: str, trial: str, problem: Problem) -> dict[str, object]:
    return {
        "section": dataset,
        "protocol": trial,
        "superpixels": f"{int(problem.mask.sum()):,}",
        "spots": f"{len(problem.spots.counts):,}",
        "median counts per spot": f"{np.median(problem.spots.counts.sum(1)):,.0f}",
        "genes": f"{len(problem.genes):,}",
    }


def _r(table: pd.DataFrame) -> str:
    """Mean Pearson r by scale, as text."""
    mean = table[table.statistic == "pearson"].groupby("scale_um").value.mean()
    return ", ".join(f"{value:.3f} ({scale:g} µm)" for scale, value in mean.items())
